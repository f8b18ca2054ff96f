/// Renders a template: walks over its statements and evaluates their expressions.
struct JinjaInterpreter {
    /// What a statement does to the loop around it.
    enum Flow {
        case next
        case breakLoop
        case continueLoop
    }

    /// A macro, and how many scopes surround its definition.
    struct BoundMacro {
        let macro: JinjaMacro
        let scopes: Int
    }

    /// Variables by name, the innermost scope last.
    var scopes: [[String: JinjaValue]]
    /// The attributes of the namespaces that were made.
    var namespaces: [[String: JinjaValue]] = []
    var macros: [BoundMacro] = []
    private var macroDepth = 0
    private var steps = 0

    /// A template may take this many steps and no more: a chat template is no program that may run for ever.
    private static let stepLimit = 2_000_000
    private static let macroLimit = 48

    init(variables: [String: JinjaValue]) {
        scopes = [variables]
    }

    /// Runs statements and appends their text to `output`.
    mutating func run(_ statements: [JinjaStatement], _ output: inout String) throws -> Flow {
        for statement in statements {
            let flow = try run(statement, &output)
            guard case .next = flow else { return flow }
        }
        return .next
    }

    /// Counts steps of the work.
    mutating func step(_ line: Int, count: Int = 1) throws {
        steps += count
        if steps > Self.stepLimit {
            throw TemplateError(line: line, "rendering takes more than \(Self.stepLimit) steps")
        }
    }

    private mutating func run(_ statement: JinjaStatement, _ output: inout String) throws -> Flow {
        try step(statement.line)
        switch statement.kind {
        case .text(let text): output += text
        case .output(let node):
            let value = try evaluate(node)
            output += try located(node) { try value.text() }
            guard output.utf8.count <= 4 * JinjaValue.sizeLimit else {
                throw TemplateError(line: statement.line, "the rendered text is too long")
            }
        case .branches(let branches, let otherwise):
            for branch in branches where try evaluate(branch.condition).isTrue { return try run(branch.body, &output) }
            return try run(otherwise, &output)
        case .loop(let target, let sequence, let condition, let body, let otherwise):
            return try runLoop(target, sequence, condition, body, otherwise, &output)
        case .set(let target, let node):
            try assign(try evaluate(node), to: target, line: statement.line)
        case .setBlock(let target, let body, let filters):
            let text = try filtered(try captured(body), filters, line: statement.line)
            try assign(text, to: target, line: statement.line)
        case .macro(let macro):
            macros.append(BoundMacro(macro: macro, scopes: scopes.count))
            try assign(.macro(macros.count - 1), to: .name(macro.name), line: statement.line)
        case .callBlock(let call, let caller):
            output += try callBlock(call, caller)
        case .filterBlock(let filters, let body):
            output += try filtered(try captured(body), filters, line: statement.line).text()
        case .scope(let assignments, let body):
            var variables: [String: JinjaValue] = [:]
            for (target, node) in assignments {
                try bind(try evaluate(node), to: target, line: statement.line, in: &variables)
            }
            return try inScope(variables) { try $0.run(body, &output) }
        case .generation(let body):
            return try inScope([:]) { try $0.run(body, &output) }
        case .breakLoop: return .breakLoop
        case .continueLoop: return .continueLoop
        }
        return .next
    }

    private mutating func inScope<Result>(
        _ variables: [String: JinjaValue], _ body: (inout JinjaInterpreter) throws -> Result
    ) rethrows -> Result {
        scopes.append(variables)
        defer { scopes.removeLast() }
        return try body(&self)
    }

    private mutating func captured(_ body: [JinjaStatement]) throws -> JinjaValue {
        var text = ""
        try inScope([:]) { _ = try $0.run(body, &text) }
        return try charged(.string(text), line: body.first?.line ?? 1)
    }

    private mutating func filtered(
        _ value: JinjaValue, _ filters: [(name: String, arguments: JinjaArguments)], line: Int
    ) throws -> JinjaValue {
        try filters.reduce(value) { value, filter in
            let arguments = try evaluate(filter.arguments)
            return try located(line) { try JinjaFilters.apply(filter.name, value, arguments) }
        }
    }

    // MARK: Loops

    private mutating func runLoop(
        _ target: JinjaTarget, _ sequence: JinjaNode, _ condition: JinjaNode?, _ body: [JinjaStatement],
        _ otherwise: [JinjaStatement], _ output: inout String
    ) throws -> Flow {
        let value = try evaluate(sequence)
        guard var items = value.elements else {
            throw TemplateError(line: sequence.line, "a for loop cannot run over \(value.kind)\(sequence.quoted)")
        }
        if let condition {
            items = try items.filter { item in
                var variables: [String: JinjaValue] = [:]
                try bind(item, to: target, line: sequence.line, in: &variables)
                return try inScope(variables) { try $0.evaluate(condition).isTrue }
            }
        }
        guard !items.isEmpty else { return try inScope([:]) { try $0.run(otherwise, &output) } }
        for (index, item) in items.enumerated() {
            try step(sequence.line)
            let loop = JinjaLoop(items: items, index0: index)
            var variables: [String: JinjaValue] = ["loop": .loop(loop)]
            try bind(item, to: target, line: sequence.line, in: &variables)
            let flow = try inScope(variables) { try $0.run(body, &output) }
            if case .breakLoop = flow { break }
        }
        return .next
    }

    // MARK: Assignment

    private mutating func assign(_ value: JinjaValue, to target: JinjaTarget, line: Int) throws {
        if case .attribute(let name, let attribute) = target {
            guard case .namespace(let number) = lookUp(name) else {
                throw TemplateError(
                    line: line, "cannot set \"\(name).\(attribute)\": \"\(name)\" is not a namespace")
            }
            try Self.checkAttribute(attribute, line: line)
            namespaces[number][attribute] = value
            return
        }
        var variables = scopes.removeLast()
        defer { scopes.append(variables) }
        try bind(value, to: target, line: line, in: &variables)
    }

    static func checkAttribute(_ name: String, line: Int?) throws {
        guard name.hasPrefix("_") else { return }
        throw TemplateError(line: line, "a namespace cannot have the attribute \"\(name)\", which begins with \"_\"")
    }

    private func bind(
        _ value: JinjaValue, to target: JinjaTarget, line: Int, in variables: inout [String: JinjaValue]
    ) throws {
        switch target {
        case .name(let name): variables[name] = value
        case .attribute(let name, _):
            throw TemplateError(line: line, "\"\(name)\" cannot be assigned to here: only set changes a namespace")
        case .tuple(let targets):
            guard let parts = value.elements, parts.count == targets.count else {
                throw TemplateError(
                    line: line, "\(value.kind) cannot be unpacked to \(targets.count) names")
            }
            for (part, target) in zip(parts, targets) { try bind(part, to: target, line: line, in: &variables) }
        }
    }

    /// The variable or global function of a name.
    func lookUp(_ name: String) -> JinjaValue {
        for scope in scopes.reversed() {
            if let value = scope[name] { return value }
        }
        return JinjaFunctions.names.contains(name) ? .function(name) : .undefined("\"\(name)\" is undefined")
    }

    // MARK: Macros

    private mutating func callBlock(_ call: JinjaNode, _ caller: JinjaMacro) throws -> String {
        guard case .call(let callee, let arguments) = call.expression,
            case .macro(let number) = try evaluate(callee)
        else { throw TemplateError(line: call.line, "{% call %} needs a call of a macro") }
        macros.append(BoundMacro(macro: caller, scopes: scopes.count))
        let callerValue = JinjaValue.macro(macros.count - 1)
        return try self.call(number, try evaluate(arguments), caller: callerValue, line: call.line)
    }

    /// Calls a macro: its body sees its arguments and the scopes around its definition.
    mutating func call(
        _ number: Int, _ arguments: JinjaCallArguments, caller: JinjaValue? = nil, line: Int
    ) throws -> String {
        let bound = macros[number]
        macroDepth += 1
        defer { macroDepth -= 1 }
        guard macroDepth <= Self.macroLimit else {
            throw TemplateError(line: line, "macros call each other more than \(Self.macroLimit) levels deep")
        }
        let names = bound.macro.parameters.map(\.name)
        let values = try located(line) { try arguments.bound(to: names, of: "the macro \"\(bound.macro.name)\"") }
        let outer = Array(scopes[min(bound.scopes, scopes.count)...])
        scopes.removeLast(outer.count)
        defer { scopes += outer }
        return try inScope(caller.map { ["caller": $0] } ?? [:]) { interpreter in
            for (parameter, value) in zip(bound.macro.parameters, values) {
                let value = try value ?? parameter.defaultValue.map { try interpreter.evaluate($0) }
                interpreter.scopes[interpreter.scopes.count - 1][parameter.name] =
                    value ?? .undefined("the parameter \"\(parameter.name)\" was not given")
            }
            var text = ""
            _ = try interpreter.run(bound.macro.body, &text)
            return text
        }
    }
}
