/// Reads expressions, weakest operator first, as Jinja binds them.
extension JinjaParser {
    /// An expression, or several with commas between them: a tuple.
    mutating func parseTuple(withConditional: Bool = true) throws -> JinjaNode {
        let line = token.line
        let first = withConditional ? try parseExpression() : try parseOr()
        guard isSymbol(",") else { return first }
        var elements = [first]
        while skipSymbol(",") {
            switch token.kind {
            case .blockEnd, .outputEnd, .symbol(")"): break
            default:
                elements.append(withConditional ? try parseExpression() : try parseOr())
                continue
            }
            break
        }
        return try make(.tuple(elements), line, elements)
    }

    /// `a if b else c`.
    mutating func parseExpression() throws -> JinjaNode {
        let line = token.line
        var node = try parseOr()
        while skipName("if") {
            let condition = try parseOr()
            let otherwise = skipName("else") ? try parseExpression() : nil
            let parts = [node, condition] + (otherwise.map { [$0] } ?? [])
            node = try make(.conditional(then: node, condition: condition, otherwise: otherwise), line, parts)
        }
        return node
    }

    /// Makes a node that is one level deeper than its parts.
    private func make(_ expression: JinjaExpression, _ line: Int, _ parts: [JinjaNode] = []) throws -> JinjaNode {
        let depth = 1 + (parts.map(\.depth).max() ?? 0)
        guard depth <= Self.depthLimit else {
            throw TemplateError(line: line, "an expression is more than \(Self.depthLimit) levels deep")
        }
        return JinjaNode(expression: expression, line: line, depth: depth)
    }

    private mutating func parseOr() throws -> JinjaNode {
        var left = try parseAnd()
        while isName("or") {
            let line = token.line
            advance()
            let right = try parseAnd()
            left = try make(.or(left, right), line, [left, right])
        }
        return left
    }

    private mutating func parseAnd() throws -> JinjaNode {
        var left = try parseNot()
        while isName("and") {
            let line = token.line
            advance()
            let right = try parseNot()
            left = try make(.and(left, right), line, [left, right])
        }
        return left
    }

    private mutating func parseNot() throws -> JinjaNode {
        let line = token.line
        guard skipName("not") else { return try parseComparison() }
        let operand = try nested { try $0.parseNot() }
        return try make(.not(operand), line, [operand])
    }

    private mutating func parseComparison() throws -> JinjaNode {
        let line = token.line
        let first = try parseSum()
        var rest: [(symbol: String, operand: JinjaNode)] = []
        while let symbol = skipComparison() { rest.append((symbol, try parseSum())) }
        return rest.isEmpty ? first : try make(.comparison(first, rest), line, [first] + rest.map(\.operand))
    }

    private mutating func skipComparison() -> String? {
        for symbol in ["==", "!=", "<=", ">=", "<", ">"] where skipSymbol(symbol) { return symbol }
        if skipName("in") { return "in" }
        guard isName("not"), index + 1 < tokens.count, tokens[index + 1].kind == .name("in") else { return nil }
        advance()
        advance()
        return "not in"
    }

    private mutating func parseSum() throws -> JinjaNode {
        var left = try parseConcatenation()
        while isSymbol("+") || isSymbol("-") {
            left = try parseBinary(left) { try $0.parseConcatenation() }
        }
        return left
    }

    private mutating func parseConcatenation() throws -> JinjaNode {
        let line = token.line
        var parts = [try parseProduct()]
        while skipSymbol("~") { parts.append(try parseProduct()) }
        return parts.count == 1 ? parts[0] : try make(.concatenation(parts), line, parts)
    }

    private mutating func parseProduct() throws -> JinjaNode {
        var left = try parsePower()
        while ["*", "/", "//", "%"].contains(where: isSymbol) {
            left = try parseBinary(left) { try $0.parsePower() }
        }
        return left
    }

    private mutating func parsePower() throws -> JinjaNode {
        var left = try parseUnary()
        while isSymbol("**") {
            left = try parseBinary(left) { try $0.parseUnary() }
        }
        return left
    }

    private mutating func parseBinary(
        _ left: JinjaNode, _ parseRight: (inout JinjaParser) throws -> JinjaNode
    ) throws -> JinjaNode {
        guard case .symbol(let symbol) = token.kind else { return left }
        let line = token.line
        advance()
        let right = try parseRight(&self)
        return try make(.binary(left, symbol, right), line, [left, right])
    }

    private mutating func parseUnary(withFilters: Bool = true) throws -> JinjaNode {
        let line = token.line
        var node: JinjaNode
        if isSymbol("-") || isSymbol("+") {
            let isNegative = isSymbol("-")
            advance()
            let operand = try nested { try $0.parseUnary(withFilters: false) }
            node = try make(isNegative ? .negative(operand) : .positive(operand), line, [operand])
        } else {
            node = try parsePrimary()
        }
        node = try parsePostfix(node)
        return withFilters ? try parseFiltersAndTests(node) : node
    }

    /// Guards a recursive step by the depth limit.
    private mutating func nested(_ parse: (inout JinjaParser) throws -> JinjaNode) throws -> JinjaNode {
        recursion += 1
        defer { recursion -= 1 }
        guard recursion <= Self.depthLimit else {
            throw TemplateError(line: token.line, "an expression is more than \(Self.depthLimit) levels deep")
        }
        return try parse(&self)
    }

    private mutating func parsePrimary() throws -> JinjaNode {
        let line = token.line
        let kind = token.kind
        switch kind {
        case .name(let name):
            advance()
            names.insert(name)
            return try make(Self.constant(name).map { .literal($0) } ?? .name(name), line)
        case .string(var text):
            advance()
            while case .string(let more) = token.kind {
                text += more
                advance()
            }
            return try make(.literal(.string(text)), line)
        case .integer(let value):
            advance()
            return try make(.literal(.integer(value)), line)
        case .float(let value):
            advance()
            return try make(.literal(.float(value)), line)
        case .symbol("("):
            advance()
            if skipSymbol(")") { return try make(.tuple([]), line) }
            let inner = try nested { try $0.parseTuple() }
            try expect(.symbol(")"))
            return inner
        case .symbol("["):
            advance()
            let elements = try parseElements(until: "]") { try $0.parseExpression() }
            return try make(.list(elements), line, elements)
        case .symbol("{"):
            advance()
            return try parseDictionary(line)
        default:
            throw TemplateError(line: line, "expected an expression but found \(kind.description)")
        }
    }

    private static func constant(_ name: String) -> JinjaValue? {
        switch name {
        case "true", "True": .boolean(true)
        case "false", "False": .boolean(false)
        case "none", "None": JinjaValue.none
        default: nil
        }
    }

    private mutating func parseElements(
        until end: String, _ parse: (inout JinjaParser) throws -> JinjaNode
    ) throws -> [JinjaNode] {
        var elements: [JinjaNode] = []
        while !skipSymbol(end) {
            if !elements.isEmpty {
                try expect(.symbol(","))
                if skipSymbol(end) { break }
            }
            elements.append(try nested(parse))
        }
        return elements
    }

    private mutating func parseDictionary(_ line: Int) throws -> JinjaNode {
        var pairs: [(key: JinjaNode, value: JinjaNode)] = []
        while !skipSymbol("}") {
            if !pairs.isEmpty {
                try expect(.symbol(","))
                if skipSymbol("}") { break }
            }
            let key = try nested { try $0.parseExpression() }
            try expect(.symbol(":"))
            pairs.append((key, try nested { try $0.parseExpression() }))
        }
        return try make(.dictionary(pairs), line, pairs.flatMap { [$0.key, $0.value] })
    }

    private mutating func parsePostfix(_ node: JinjaNode) throws -> JinjaNode {
        var node = node
        while true {
            let line = token.line
            if skipSymbol(".") {
                if case .integer(let position) = token.kind {
                    advance()
                    let index = try make(.literal(.integer(position)), line)
                    node = try make(.item(node, index), line, [node, index])
                } else {
                    node = try make(.attribute(node, try expectName()), line, [node])
                }
            } else if skipSymbol("[") {
                node = try parseSubscript(node, line)
            } else if isSymbol("(") {
                let arguments = try parseArguments()
                node = try make(.call(node, arguments), line, [node] + arguments.nodes)
            } else {
                return node
            }
        }
    }

    private mutating func parseSubscript(_ node: JinjaNode, _ line: Int) throws -> JinjaNode {
        var parts: [JinjaNode?] = [nil]
        while !isSymbol("]") {
            if skipSymbol(":") {
                parts.append(nil)
                guard parts.count <= 3 else { throw TemplateError(line: line, "a slice has at most three parts") }
            } else if parts[parts.count - 1] == nil {
                parts[parts.count - 1] = try nested { try $0.parseExpression() }
            } else {
                try expect(.symbol("]"))
            }
        }
        advance()
        if parts.count == 1 {
            guard let index = parts[0] else { throw TemplateError(line: line, "a subscript [] is empty") }
            return try make(.item(node, index), line, [node, index])
        }
        let step = parts.count > 2 ? parts[2] : nil
        return try make(
            .slice(node, start: parts[0], stop: parts[1], step: step), line, [node] + parts.compactMap(\.self))
    }

    mutating func parseArguments() throws -> JinjaArguments {
        var arguments = JinjaArguments()
        try expect(.symbol("("))
        var isFirst = true
        while !skipSymbol(")") {
            if !isFirst {
                try expect(.symbol(","))
                if skipSymbol(")") { break }
            }
            isFirst = false
            let line = token.line
            if arguments.unpackedNamed != nil { throw TemplateError(line: line, "no argument may follow **") }
            if skipSymbol("**") {
                arguments.unpackedNamed = try nested { try $0.parseExpression() }
            } else if skipSymbol("*") {
                guard arguments.unpacked == nil else { throw TemplateError(line: line, "there is more than one *") }
                arguments.unpacked = try nested { try $0.parseExpression() }
            } else if case .name(let name) = token.kind, index + 1 < tokens.count,
                tokens[index + 1].kind == .symbol("=")
            {
                advance()
                advance()
                arguments.named.append((name, try nested { try $0.parseExpression() }))
            } else if arguments.named.isEmpty, arguments.unpacked == nil {
                arguments.positional.append(try nested { try $0.parseExpression() })
            } else {
                throw TemplateError(line: line, "an argument without a name follows one with a name")
            }
        }
        return arguments
    }

    private mutating func parseFiltersAndTests(_ node: JinjaNode) throws -> JinjaNode {
        var node = node
        while true {
            let line = token.line
            if skipSymbol("|") {
                let name = try expectName()
                try JinjaFilters.check(name, line: line)
                let arguments = isSymbol("(") ? try parseArguments() : JinjaArguments()
                node = try make(.filter(node, name, arguments), line, [node] + arguments.nodes)
            } else if skipName("is") {
                node = try parseTest(node, line)
            } else if isSymbol("(") {
                let arguments = try parseArguments()
                node = try make(.call(node, arguments), line, [node] + arguments.nodes)
            } else {
                return node
            }
        }
    }

    private mutating func parseTest(_ node: JinjaNode, _ line: Int) throws -> JinjaNode {
        let isNegated = skipName("not")
        let name = try expectName()
        try JinjaTests.check(name, line: line)
        var arguments = JinjaArguments()
        switch token.kind {
        case .symbol("("): arguments = try parseArguments()
        case .name("else"), .name("or"), .name("and"), .name("is"), .name("if"), .name("in"), .name("not"): break
        case .name, .string, .integer, .float, .symbol("["), .symbol("{"):
            arguments.positional = [try parsePostfix(try parsePrimary())]
        default: break
        }
        return try make(.test(node, name, arguments, isNegated: isNegated), line, [node] + arguments.nodes)
    }
}
