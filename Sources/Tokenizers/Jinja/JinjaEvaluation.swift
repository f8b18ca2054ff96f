/// The evaluation of expressions.
extension JinjaInterpreter {
    mutating func evaluate(_ node: JinjaNode) throws -> JinjaValue {
        try step(node.line)
        switch node.expression {
        case .literal(let value): return value
        case .name(let name): return lookUp(name)
        case .list, .tuple, .dictionary, .call:
            let value = try compute(node)
            try step(node.line, count: try located(node) { try value.checkedSize() })
            return value
        case .binary, .concatenation, .filter, .slice: return try charged(try compute(node), line: node.line)
        default: return try compute(node)
        }
    }

    /// Counts the size of a new value as work, so that a template cannot fill the memory.
    mutating func charged(_ value: JinjaValue, line: Int) throws -> JinjaValue {
        switch value {
        case .string(let text, _): try step(line, count: text.utf8.count >> 6)
        case .list(let values), .tuple(let values): try step(line, count: values.count >> 2)
        default: break
        }
        return value
    }

    private mutating func compute(_ node: JinjaNode) throws -> JinjaValue {
        switch node.expression {
        case .literal(let value): return value
        case .name(let name): return lookUp(name)
        case .list(let nodes): return .list(try evaluate(nodes))
        case .tuple(let nodes): return .tuple(try evaluate(nodes))
        case .dictionary(let pairs): return try evaluateDictionary(pairs)
        case .and(let left, let right):
            let value = try evaluate(left)
            return value.isTrue ? try evaluate(right) : value
        case .or(let left, let right):
            let value = try evaluate(left)
            return value.isTrue ? value : try evaluate(right)
        case .not(let operand): return .boolean(!(try evaluate(operand).isTrue))
        case .conditional(let then, let condition, let otherwise):
            if try evaluate(condition).isTrue { return try evaluate(then) }
            return try otherwise.map { try evaluate($0) }
                ?? .undefined("the condition is false and there is no else")
        case .comparison(let first, let rest): return try compare(first, rest)
        case .concatenation(let nodes):
            let text = try nodes.map { node in
                let value = try evaluate(node)
                return try located(node) { try value.markedText() }
            }.joined()
            try located(node) { try JinjaValue.checkSize(text.count) }
            return .marked(text)
        case .binary(let left, let symbol, let right):
            let (a, b) = (try evaluate(left), try evaluate(right))
            return try located(node) { try a.applying(symbol, b) }
        case .negative(let operand):
            let value = try evaluate(operand)
            return try located(node) { try JinjaValue.integer(0).applying("-", value) }
        case .positive(let operand):
            let value = try evaluate(operand)
            return try located(node) { try JinjaValue.integer(0).applying("+", value) }
        case .attribute, .item, .slice: return try access(node)
        case .call(let callee, let arguments): return try call(callee, arguments, node)
        case .filter(let operand, let name, let arguments):
            let value = try evaluate(operand)
            let given = try evaluate(arguments)
            return try located(node) { try JinjaFilters.apply(name, value, given) }
        case .test(let operand, let name, let arguments, let isNegated):
            let value = try evaluate(operand)
            let given = try evaluate(arguments)
            return try located(node) {
                guard given.named.isEmpty else { throw TemplateError("a test takes no named arguments") }
                return .boolean(try JinjaTests.apply(name, value, given.positional) != isNegated)
            }
        }
    }

    private mutating func evaluate(_ nodes: [JinjaNode]) throws -> [JinjaValue] {
        try nodes.map { try evaluate($0) }
    }

    mutating func evaluate(_ arguments: JinjaArguments) throws -> JinjaCallArguments {
        var given = JinjaCallArguments(
            positional: try evaluate(arguments.positional),
            named: try arguments.named.map { ($0.name, try evaluate($0.value)) })
        if let node = arguments.unpacked {
            let value = try evaluate(node)
            guard let elements = value.elements else {
                throw TemplateError(line: node.line, "* unpacks a sequence, not \(value.kind)\(node.quoted)")
            }
            given.positional += elements
        }
        if let node = arguments.unpackedNamed {
            guard case .dictionary(let pairs) = try evaluate(node) else {
                throw TemplateError(line: node.line, "** unpacks a dictionary\(node.quoted)")
            }
            for pair in pairs.entries {
                guard case .string(let name, _) = pair.key else {
                    throw TemplateError(line: node.line, "** needs strings as keys\(node.quoted)")
                }
                given.named.append((name, pair.value))
            }
        }
        return given
    }

    private mutating func evaluateDictionary(
        _ pairs: [(key: JinjaNode, value: JinjaNode)]
    ) throws -> JinjaValue {
        var result = JinjaDictionary()
        for pair in pairs {
            let (key, value) = (try evaluate(pair.key), try evaluate(pair.value))
            try located(pair.key) { try result.set(key, value) }
        }
        return .dictionary(result)
    }

    private mutating func compare(
        _ first: JinjaNode, _ rest: [(symbol: String, operand: JinjaNode)]
    ) throws -> JinjaValue {
        var left = try evaluate(first)
        for (symbol, node) in rest {
            let right = try evaluate(node)
            let holds = try located(node) { try Self.compare(left, symbol, right) }
            guard holds else { return .boolean(false) }
            left = right
        }
        return .boolean(true)
    }

    private static func compare(_ a: JinjaValue, _ symbol: String, _ b: JinjaValue) throws -> Bool {
        switch symbol {
        case "==": a.isEqual(to: b)
        case "!=": !a.isEqual(to: b)
        case "<": try a.precedes(b)
        case ">": try b.precedes(a)
        case "<=": try !b.precedes(a)
        case ">=": try !a.precedes(b)
        case "in": try b.contains(a)
        default: try !b.contains(a)
        }
    }

    private mutating func access(_ node: JinjaNode) throws -> JinjaValue {
        switch node.expression {
        case .attribute(let object, let name):
            let value = try evaluate(object)
            if case .undefined(let reason) = value { throw TemplateError(line: node.line, reason + node.quoted) }
            if case .namespace(let number) = value {
                return namespaces[number][name] ?? .undefined("the namespace has no attribute \"\(name)\"")
            }
            return value.attribute(name)
        case .item(let object, let index):
            let (value, key) = (try evaluate(object), try evaluate(index))
            if case .namespace(let number) = value, case .string(let name, _) = key {
                return namespaces[number][name] ?? .undefined("the namespace has no attribute \"\(name)\"")
            }
            return try located(node) { try value.item(key) }
        case .slice(let object, let start, let stop, let step):
            let value = try evaluate(object)
            let bounds = try [start, stop, step].map { try $0.map { try evaluate($0) } }
            return try located(node) { try value.slice(bounds[0], bounds[1], bounds[2]) }
        default: return .undefined("nothing to access")
        }
    }

    private mutating func call(
        _ callee: JinjaNode, _ arguments: JinjaArguments, _ node: JinjaNode
    ) throws -> JinjaValue {
        let function = try evaluate(callee)
        let given = try evaluate(arguments)
        switch function {
        case .macro(let number): return .marked(try call(number, given, line: node.line))
        case .loop(let loop): return .marked(try repeatLoop(loop, given, line: node.line))
        case .method(.loop(let loop), "changed"): return .boolean(hasChanged(given.positional, in: loop))
        case .method(let receiver, let name):
            return try located(node) { try JinjaMethods.call(name, of: receiver, given) }
        case .function("namespace"):
            return try located(node) { try makeNamespace(given) }
        case .function(let name):
            return try located(node) { try JinjaFunctions.call(name, given) }
        case .undefined(let reason):
            throw TemplateError(line: node.line, "\(reason) and cannot be called\(node.quoted)")
        default: throw TemplateError(line: node.line, "\(function.kind) cannot be called\(node.quoted)")
        }
    }

    private mutating func makeNamespace(_ arguments: JinjaCallArguments) throws -> JinjaValue {
        guard case .dictionary(let pairs) = try JinjaFunctions.call("dict", arguments) else { return .none }
        var attributes: [String: JinjaValue] = [:]
        for pair in pairs.entries {
            guard case .string(let name, _) = pair.key else { throw TemplateError("a namespace has names only") }
            try Self.checkAttribute(name, line: nil)
            attributes[name] = pair.value
        }
        namespaces.append(attributes)
        return .namespace(namespaces.count - 1)
    }

    // MARK: Errors

    /// Adds the line and the expression to an error that has no line.
    func located<Result>(_ node: JinjaNode, _ body: () throws -> Result) throws -> Result {
        do {
            return try body()
        } catch let error as TemplateError where error.line == nil {
            let place = error.isRaisedByTemplate ? "" : node.quoted
            throw TemplateError(
                line: node.line, error.message + place, isRaisedByTemplate: error.isRaisedByTemplate)
        }
    }

    func located<Result>(_ line: Int, _ body: () throws -> Result) throws -> Result {
        do {
            return try body()
        } catch let error as TemplateError where error.line == nil {
            throw TemplateError(line: line, error.message, isRaisedByTemplate: error.isRaisedByTemplate)
        }
    }
}
