/// Reads the statements of a template.
struct JinjaParser {
    var tokens: [JinjaToken]
    var index = 0
    /// How deep the statement being read lies in others.
    private var nesting = 0
    /// How deep the expression being read lies in others.
    var recursion = 0
    /// The names in the expressions of the macro being read.
    var names: Set<String> = []

    /// Statements may lie this deep in each other.
    private static let nestingLimit = 64
    /// Expressions may be this deep.
    static let depthLimit = 256

    private init(_ source: String) throws {
        tokens = try JinjaLexer.tokens(of: source)
    }

    /// The statements of a template.
    static func parse(_ source: String) throws -> [JinjaStatement] {
        var parser = try JinjaParser(source)
        return try parser.parseBody(until: []).statements
    }

    // MARK: Tokens

    var token: JinjaToken { tokens[min(index, tokens.count - 1)] }

    mutating func advance() { index = min(index + 1, tokens.count - 1) }

    func isName(_ name: String) -> Bool { token.kind == .name(name) }

    func isSymbol(_ symbol: String) -> Bool { token.kind == .symbol(symbol) }

    mutating func skipName(_ name: String) -> Bool {
        guard isName(name) else { return false }
        advance()
        return true
    }

    mutating func skipSymbol(_ symbol: String) -> Bool {
        guard isSymbol(symbol) else { return false }
        advance()
        return true
    }

    mutating func expect(_ kind: JinjaToken.Kind) throws {
        guard token.kind == kind else {
            throw TemplateError(
                line: token.line, "expected \(kind.description) but found \(token.kind.description)")
        }
        advance()
    }

    mutating func expectName() throws -> String {
        guard case .name(let name) = token.kind else {
            throw TemplateError(line: token.line, "expected a name but found \(token.kind.description)")
        }
        advance()
        return name
    }

    // MARK: Statements

    /// Reads statements up to a block tag that begins with one of `ends` (or, without ends, to the end of the template);
    /// that name has then been read, the rest of its tag has not.
    private mutating func parseBody(until ends: [String]) throws -> (statements: [JinjaStatement], end: String) {
        nesting += 1
        defer { nesting -= 1 }
        guard nesting <= Self.nestingLimit else {
            throw TemplateError(line: token.line, "statements lie more than \(Self.nestingLimit) levels deep")
        }
        var statements: [JinjaStatement] = []
        while true {
            let line = token.line
            switch token.kind {
            case .end:
                guard ends.isEmpty else {
                    throw TemplateError(line: line, "the template ends where {% \(ends.last ?? "") %} is missing")
                }
                return (statements, "")
            case .text(let text):
                advance()
                statements.append(JinjaStatement(kind: .text(text), line: line))
            case .outputBegin:
                advance()
                statements.append(JinjaStatement(kind: .output(try parseTuple()), line: line))
                try expect(.outputEnd)
            default:
                try expect(.blockBegin)
                let keyword = try expectName()
                if ends.contains(keyword) { return (statements, keyword) }
                statements.append(JinjaStatement(kind: try parseStatement(keyword, line), line: line))
            }
        }
    }

    private mutating func parseClosedBody(_ end: String) throws -> [JinjaStatement] {
        try expect(.blockEnd)
        return try parseBody(until: [end]).statements
    }

    private mutating func parseStatement(_ keyword: String, _ line: Int) throws -> JinjaStatement.Kind {
        let kind: JinjaStatement.Kind
        switch keyword {
        case "if": kind = try parseIf()
        case "for": kind = try parseFor()
        case "set": kind = try parseSet()
        case "macro": kind = try parseMacro()
        case "call": kind = try parseCall()
        case "filter": kind = try parseFilterBlock()
        case "with": kind = try parseWith()
        case "generation": kind = .generation(try parseClosedBody("endgeneration"))
        case "break": kind = .breakLoop
        case "continue": kind = .continueLoop
        case "include", "import", "from", "extends", "block":
            throw TemplateError(
                line: line,
                "{% \(keyword) %} refers to another template, but a chat template stands alone; write its "
                    + "content into this one")
        default:
            throw TemplateError(
                line: line,
                "the statement {% \(keyword) %} is not supported here; supported are if, for, set, macro, call, "
                    + "filter, with, generation, break, continue and raw")
        }
        try expect(.blockEnd)
        return kind
    }

    private mutating func parseIf() throws -> JinjaStatement.Kind {
        var branches: [(condition: JinjaNode, body: [JinjaStatement])] = []
        var otherwise: [JinjaStatement] = []
        var end = "elif"
        while end == "elif" {
            let condition = try parseTuple(withConditional: false)
            try expect(.blockEnd)
            let part = try parseBody(until: ["elif", "else", "endif"])
            branches.append((condition, part.statements))
            end = part.end
        }
        if end == "else" { otherwise = try parseClosedBody("endif") }
        return .branches(branches, otherwise: otherwise)
    }

    private mutating func parseFor() throws -> JinjaStatement.Kind {
        let target = try parseTarget()
        try expect(.name("in"))
        let sequence = try parseTuple(withConditional: false)
        let condition = skipName("if") ? try parseExpression() : nil
        let isRecursive = skipName("recursive")
        try expect(.blockEnd)
        let part = try parseBody(until: ["else", "endfor"])
        let otherwise = part.end == "else" ? try parseClosedBody("endfor") : []
        return .loop(
            JinjaForLoop(
                target: target, sequence: sequence, condition: condition, isRecursive: isRecursive,
                body: part.statements, otherwise: otherwise))
    }

    private mutating func parseSet() throws -> JinjaStatement.Kind {
        let target = try parseTarget()
        if skipSymbol("=") { return .set(target, try parseTuple()) }
        let filters = isSymbol("|") ? try parseFilterNames() : []
        return .setBlock(target, try parseClosedBody("endset"), filters: filters)
    }

    private mutating func parseMacro() throws -> JinjaStatement.Kind {
        let name = try expectName()
        let parameters = try parseParameters()
        return .macro(try parseMacroBody(name, parameters, end: "endmacro"))
    }

    private mutating func parseCall() throws -> JinjaStatement.Kind {
        let parameters = isSymbol("(") ? try parseParameters() : []
        let call = try parseExpression()
        guard case .call = call.expression else {
            throw TemplateError(line: call.line, "{% call %} needs a call of a macro")
        }
        return .callBlock(call, try parseMacroBody("caller", parameters, end: "endcall"))
    }

    private mutating func parseMacroBody(
        _ name: String, _ parameters: [(name: String, defaultValue: JinjaNode?)], end: String
    ) throws -> JinjaMacro {
        let outer = names
        names = []
        var macro = JinjaMacro(name: name, parameters: parameters, body: try parseClosedBody(end))
        macro.takesMore = names.contains("varargs")
        macro.takesMoreNamed = names.contains("kwargs")
        macro.takesCaller = names.contains("caller")
        names.formUnion(outer)
        return macro
    }

    private mutating func parseParameters() throws -> [(name: String, defaultValue: JinjaNode?)] {
        try expect(.symbol("("))
        var parameters: [(name: String, defaultValue: JinjaNode?)] = []
        while !isSymbol(")") {
            if !parameters.isEmpty { try expect(.symbol(",")) }
            let line = token.line
            let name = try expectName()
            let defaultValue = skipSymbol("=") ? try parseExpression() : nil
            guard defaultValue != nil || parameters.allSatisfy({ $0.defaultValue == nil }) else {
                throw TemplateError(
                    line: line, "the parameter \"\(name)\" needs a default, since one before it has one")
            }
            parameters.append((name, defaultValue))
        }
        advance()
        return parameters
    }

    private mutating func parseFilterBlock() throws -> JinjaStatement.Kind {
        let filters = try parseFilterNames(first: true)
        return .filterBlock(filters, try parseClosedBody("endfilter"))
    }

    /// `|name(arguments)|...`; the first bar is missing in a filter block's tag.
    private mutating func parseFilterNames(
        first: Bool = false
    ) throws -> [(name: String, arguments: JinjaArguments)] {
        var filters: [(name: String, arguments: JinjaArguments)] = []
        while (first && filters.isEmpty) || skipSymbol("|") {
            let line = token.line
            let name = try expectName()
            try JinjaFilters.check(name, line: line)
            filters.append((name, isSymbol("(") ? try parseArguments() : JinjaArguments()))
        }
        return filters
    }

    private mutating func parseWith() throws -> JinjaStatement.Kind {
        var assignments: [(JinjaTarget, JinjaNode)] = []
        while token.kind != .blockEnd {
            if !assignments.isEmpty { try expect(.symbol(",")) }
            let target = try parseTarget()
            try expect(.symbol("="))
            assignments.append((target, try parseExpression()))
        }
        return .scope(assignments, try parseClosedBody("endwith"))
    }

    /// A name, `namespace.attribute`, or several of them with commas, maybe in parentheses.
    private mutating func parseTarget() throws -> JinjaTarget {
        var parts = [try parseSingleTarget()]
        var isTuple = false
        while skipSymbol(",") {
            isTuple = true
            guard !isName("in"), !isSymbol("=") else { break }
            parts.append(try parseSingleTarget())
        }
        return isTuple ? .tuple(parts) : parts[0]
    }

    private mutating func parseSingleTarget() throws -> JinjaTarget {
        if skipSymbol("(") {
            let target = try parseTarget()
            try expect(.symbol(")"))
            return target
        }
        let line = token.line
        let name = try expectName()
        guard !["true", "false", "none", "True", "False", "None"].contains(name) else {
            throw TemplateError(line: line, "cannot assign to \"\(name)\"")
        }
        return skipSymbol(".") ? .attribute(name, try expectName()) : .name(name)
    }
}
