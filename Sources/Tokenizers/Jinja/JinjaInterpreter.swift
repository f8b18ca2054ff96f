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
    /// The recursive loops that have begun, and how many scopes surround each.
    private var recursiveLoops: [(loop: JinjaForLoop, scopes: Int)] = []
    private var loopRuns = 0
    /// What `loop.changed` was last called with, by the run of the loop.
    private var loopValues: [Int: [JinjaValue]] = [:]
    private var macroDepth = 0
    private var steps = 0

    /// A template may take this many steps and no more: a chat template is no program that may run for ever.
    private static let stepLimit = 2_000_000
    private static let macroLimit = 48

    init(variables: [String: JinjaValue]) {
        scopes = [variables]
    }

    /// Runs statements and appends their text to `output`.
    mutating func run(_ statements: [JinjaStatement], _ output: inout JinjaText) throws -> Flow {
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

    private mutating func run(_ statement: JinjaStatement, _ output: inout JinjaText) throws -> Flow {
        try step(statement.line)
        switch statement.kind {
        case .text(let text): output.text += text
        case .output(let node):
            let value = try evaluate(node)
            output.append(try located(node) { try value.markedText() })
            guard output.count <= 4 * JinjaValue.sizeLimit else {
                throw TemplateError(line: statement.line, "the rendered text is too long")
            }
        case .branches(let branches, let otherwise):
            for branch in branches where try evaluate(branch.condition).isTrue { return try run(branch.body, &output) }
            return try run(otherwise, &output)
        case .loop(let loop):
            return try runLoop(loop, over: try evaluate(loop.sequence), &output)
        case .set(let target, let node):
            try assign(try evaluate(node), to: target, line: statement.line)
        case .setBlock(let target, let body, let filters):
            let text = try filtered(try captured(body), filters, line: statement.line)
            try assign(text, to: target, line: statement.line)
        case .macro(let macro):
            macros.append(BoundMacro(macro: macro, scopes: scopes.count))
            try assign(.macro(macros.count - 1), to: .name(macro.name), line: statement.line)
        case .callBlock(let call, let caller):
            output.append(try callBlock(call, caller))
        case .filterBlock(let filters, let body):
            output.append(try filtered(try captured(body), filters, line: statement.line).markedText())
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
        var text = JinjaText()
        try inScope([:]) { _ = try $0.run(body, &text) }
        return try charged(.marked(text), line: body.first?.line ?? 1)
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
        _ loop: JinjaForLoop, over value: JinjaValue, body: Int? = nil, depth: Int = 0, _ output: inout JinjaText
    ) throws -> Flow {
        let (target, line) = (loop.target, loop.sequence.line)
        guard var items = value.elements else {
            throw TemplateError(line: line, "a for loop cannot run over \(value.kind)\(loop.sequence.quoted)")
        }
        if let condition = loop.condition {
            items = try items.filter { item in
                try step(line)
                var variables: [String: JinjaValue] = [:]
                try bind(item, to: target, line: line, in: &variables)
                return try inScope(variables) { try $0.evaluate(condition).isTrue }
            }
        }
        guard !items.isEmpty else { return try inScope([:]) { try $0.run(loop.otherwise, &output) } }
        var body = body
        if loop.isRecursive, body == nil {
            recursiveLoops.append((loop, scopes.count))
            body = recursiveLoops.count - 1
        }
        loopRuns += 1
        let run = loopRuns
        defer { loopValues[run] = nil }
        for (index, item) in items.enumerated() {
            try step(line)
            let state = JinjaLoop(items: items, index0: index, depth0: depth, run: run, body: body)
            var variables: [String: JinjaValue] = ["loop": .loop(state)]
            try bind(item, to: target, line: line, in: &variables)
            let flow = try inScope(variables) { try $0.run(loop.body, &output) }
            if case .breakLoop = flow { break }
        }
        return .next
    }

    /// `loop(elements)`: what the body of a recursive loop writes for other elements.
    mutating func repeatLoop(_ state: JinjaLoop, _ arguments: JinjaCallArguments, line: Int) throws -> JinjaText {
        guard let body = state.body else {
            throw TemplateError(line: line, "only a loop that says \"recursive\" can be called")
        }
        guard let value = try located(line, { try arguments.bound(to: ["iterable"], of: "loop()") })[0] else {
            throw TemplateError(line: line, "loop() needs a sequence")
        }
        let (loop, scopes) = recursiveLoops[body]
        return try inner(scopes: scopes, line: line) { interpreter in
            var text = JinjaText()
            _ = try interpreter.runLoop(loop, over: value, body: body, depth: state.depth0 + 1, &text)
            return text
        }
    }

    /// `loop.changed(values)`: whether the values differ from those of the call before.
    mutating func hasChanged(_ values: [JinjaValue], in loop: JinjaLoop) -> Bool {
        if let last = loopValues[loop.run], JinjaValue.list(last).isEqual(to: .list(values)) { return false }
        loopValues[loop.run] = values
        return true
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

    private mutating func callBlock(_ call: JinjaNode, _ caller: JinjaMacro) throws -> JinjaText {
        guard case .call(let callee, let arguments) = call.expression,
            case .macro(let number) = try evaluate(callee)
        else { throw TemplateError(line: call.line, "{% call %} needs a call of a macro") }
        guard macros[number].macro.takesCaller else {
            throw TemplateError(
                line: call.line,
                "the macro \"\(macros[number].macro.name)\" never calls caller(), which {% call %} is for")
        }
        macros.append(BoundMacro(macro: caller, scopes: scopes.count))
        let callerValue = JinjaValue.macro(macros.count - 1)
        return try self.call(number, try evaluate(arguments), caller: callerValue, line: call.line)
    }

    /// Calls a macro: its body sees its arguments and the scopes around its definition.
    mutating func call(
        _ number: Int, _ arguments: JinjaCallArguments, caller: JinjaValue? = nil, line: Int
    ) throws -> JinjaText {
        let bound = macros[number]
        let macro = bound.macro
        let (values, rest) = arguments.boundLoosely(to: macro.parameters.map(\.name))
        guard macro.takesMore || rest.positional.isEmpty, macro.takesMoreNamed || rest.named.isEmpty else {
            let extra = rest.named.first.map { "no parameter \"\($0.name)\"" } ?? "\(values.count) parameters only"
            throw TemplateError(line: line, "the macro \"\(macro.name)\" has \(extra)")
        }
        var more: [String: JinjaValue] = [:]
        if macro.takesMore { more["varargs"] = .tuple(rest.positional) }
        if macro.takesMoreNamed {
            more["kwargs"] = .dictionary(JinjaDictionary(names: rest.named.lazy.map { ($0.name, $0.value) }))
        }
        more["caller"] = caller
        return try inner(scopes: bound.scopes, line: line) { interpreter in
            try interpreter.inScope(more) { interpreter in
                for (parameter, value) in zip(macro.parameters, values) {
                    let value = try value ?? parameter.defaultValue.map { try interpreter.evaluate($0) }
                    interpreter.scopes[interpreter.scopes.count - 1][parameter.name] =
                        value ?? .undefined("the parameter \"\(parameter.name)\" was not given")
                }
                var text = JinjaText()
                _ = try interpreter.run(macro.body, &text)
                return text
            }
        }
    }

    /// Runs what was defined with `count` scopes around it: the ones that have come since are hidden meanwhile.
    private mutating func inner(
        scopes count: Int, line: Int, _ body: (inout JinjaInterpreter) throws -> JinjaText
    ) throws -> JinjaText {
        macroDepth += 1
        defer { macroDepth -= 1 }
        guard macroDepth <= Self.macroLimit else {
            throw TemplateError(
                line: line, "macros or recursive loops call each other more than \(Self.macroLimit) levels deep")
        }
        let hidden = Array(scopes[min(count, scopes.count)...])
        scopes.removeLast(hidden.count)
        defer { scopes += hidden }
        return try body(&self)
    }
}
