/// Cuts a template into tokens, with the whitespace rules of `trim_blocks` and `lstrip_blocks`.
///
/// `trim_blocks`: a newline right after a block tag or comment is dropped. `lstrip_blocks`: blanks between the beginning
/// of a line and a block tag or comment are dropped. `-` inside a tag strips all white space on its side, `+` none.
struct JinjaLexer {
    private let source: [Unicode.Scalar]
    private var index = 0
    private var line = 1
    /// Whether what was read last ended a line (or nothing was read).
    private var isLineStart = true
    private var tokens: [JinjaToken] = []

    private init(_ source: String) {
        self.source = Self.normalized(source)
    }

    /// All tokens of a template, the last one of kind `end`.
    static func tokens(of source: String) throws -> [JinjaToken] {
        var lexer = JinjaLexer(source)
        try lexer.lexTemplate()
        return lexer.tokens
    }

    /// Line ends become newlines, and one newline at the end is dropped.
    private static func normalized(_ source: String) -> [Unicode.Scalar] {
        var result: [Unicode.Scalar] = []
        for scalar in source.unicodeScalars {
            if scalar == "\n", result.last == "\r" { result.removeLast() }
            result.append(scalar)
            if result.count > 1, result[result.count - 2] == "\r" { result[result.count - 2] = "\n" }
        }
        if result.last == "\r" { result[result.count - 1] = "\n" }
        if result.last == "\n" { result.removeLast() }
        return result
    }

    private mutating func lexTemplate() throws {
        while index < source.count {
            let textStart = index
            while index < source.count, !isTagStart(index) { index += 1 }
            let textEnd = index
            guard index < source.count else {
                emitText(textStart..<textEnd)
                break
            }
            let opening = source[index + 1]
            let sign = index + 2 < source.count ? source[index + 2] : " "
            let hasSign = sign == "-" || sign == "+"
            emitText(textStart..<strippedEnd(textStart, textEnd, sign: hasSign ? sign : nil, opening))
            line += newlines(in: textStart..<textEnd)
            index += hasSign ? 3 : 2
            switch opening {
            case "#": try skipComment()
            case "{": try lexTag(.outputBegin, .outputEnd, close: "}")
            default:
                if isRawTag() { try lexRaw() } else { try lexTag(.blockBegin, .blockEnd, close: "%") }
            }
        }
        tokens.append(JinjaToken(kind: .end, line: line))
    }

    private func isTagStart(_ position: Int) -> Bool {
        guard source[position] == "{", position + 1 < source.count else { return false }
        let next = source[position + 1]
        return next == "{" || next == "%" || next == "#"
    }

    /// Where the text before a tag ends once the tag's whitespace rule is applied.
    private func strippedEnd(_ start: Int, _ end: Int, sign: Unicode.Scalar?, _ opening: Unicode.Scalar) -> Int {
        var stripped = end
        if sign == "-" {
            while stripped > start, source[stripped - 1].isPythonSpace { stripped -= 1 }
            return stripped
        }
        guard sign == nil, opening != "{" else { return end }
        while stripped > start, source[stripped - 1].isPythonSpace, source[stripped - 1] != "\n" { stripped -= 1 }
        let reachesLineStart = stripped > start ? source[stripped - 1] == "\n" : isLineStart
        return reachesLineStart ? stripped : end
    }

    private mutating func emitText(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        tokens.append(JinjaToken(kind: .text(text(range)), line: line))
    }

    private func text(_ range: Range<Int>) -> String {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: source[range])
        return String(view)
    }

    private func newlines(in range: Range<Int>) -> Int {
        source[range].count { $0 == "\n" }
    }

    private mutating func skipComment() throws {
        let begin = index
        while index < source.count, !isCloser("#") { index += 1 }
        guard index < source.count else {
            throw TemplateError(line: line, "a comment \"{#\" is not closed")
        }
        line += newlines(in: begin..<index)
        closeTag("#", trimsNewline: true)
    }

    /// Whether `-#}`, `+#}` or `#}` (with another character for `#`) stands at the index.
    private func isCloser(_ character: Unicode.Scalar) -> Bool {
        var position = index
        if position < source.count, source[position] == "-" || (source[position] == "+" && character != "}") {
            position += 1
        }
        return position + 1 < source.count && source[position] == character && source[position + 1] == "}"
    }

    /// Steps over a closer and the white space that its rule drops.
    private mutating func closeTag(_ character: Unicode.Scalar, trimsNewline: Bool) {
        let sign = source[index] == character ? nil : source[index]
        index += sign == nil ? 2 : 3
        isLineStart = false
        if sign == "-" {
            let begin = index
            while index < source.count, source[index].isPythonSpace { index += 1 }
            line += newlines(in: begin..<index)
            isLineStart = index > begin && source[index - 1] == "\n"
        } else if sign == nil, trimsNewline, index < source.count, source[index] == "\n" {
            index += 1
            line += 1
            isLineStart = true
        }
    }
}

// MARK: - Raw blocks

extension JinjaLexer {
    private func isRawTag() -> Bool {
        var position = index
        return skipWord("raw", &position)
    }

    /// Steps over blanks, a word and blanks, when they are there before the end of a tag.
    private func skipWord(_ word: String, _ position: inout Int) -> Bool {
        while position < source.count, source[position].isPythonSpace { position += 1 }
        for scalar in word.unicodeScalars {
            guard position < source.count, source[position] == scalar else { return false }
            position += 1
        }
        while position < source.count, source[position].isPythonSpace { position += 1 }
        guard position < source.count else { return false }
        return source[position] == "%" || source[position] == "-" || source[position] == "+"
    }

    private mutating func lexRaw() throws {
        let firstLine = line
        let tagStart = index
        _ = skipWord("raw", &index)
        line += newlines(in: tagStart..<index)
        guard isCloser("%") else { throw TemplateError(line: firstLine, "the tag \"{% raw\" is not closed") }
        closeTag("%", trimsNewline: false)
        let begin = index
        while index < source.count {
            if isTagStart(index), source[index + 1] == "%" {
                var position = index + 2
                let hasSign = position < source.count && (source[position] == "-" || source[position] == "+")
                let sign = hasSign ? source[position] : nil
                if hasSign { position += 1 }
                if skipWord("endraw", &position) {
                    let end = strippedEnd(begin, index, sign: sign, "%")
                    emitText(begin..<end)
                    line += newlines(in: begin..<position)
                    index = position
                    guard isCloser("%") else { break }
                    return closeTag("%", trimsNewline: true)
                }
            }
            index += 1
        }
        throw TemplateError(line: firstLine, "a raw block is not closed by {% endraw %}")
    }
}

// MARK: - Inside tags

extension JinjaLexer {
    private static let symbols: [String] = [
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=",
        ".", ":", "|", ",", ";",
    ]

    private mutating func lexTag(_ begin: JinjaToken.Kind, _ end: JinjaToken.Kind, close: Unicode.Scalar) throws {
        let firstLine = line
        tokens.append(JinjaToken(kind: begin, line: line))
        var brackets: [String] = []
        while true {
            skipBlanks()
            guard index < source.count else {
                throw TemplateError(line: firstLine, "a tag \(begin.description) is not closed")
            }
            if brackets.isEmpty, isCloser(close) {
                tokens.append(JinjaToken(kind: end, line: line))
                return closeTag(close, trimsNewline: close == "%")
            }
            let token = try lexElement()
            if case .symbol(let symbol) = token { try track(symbol, &brackets) }
        }
    }

    /// Keeps the open brackets, so that `}}` inside a dictionary does not end the tag.
    private func track(_ symbol: String, _ brackets: inout [String]) throws {
        switch symbol {
        case "(": brackets.append(")")
        case "[": brackets.append("]")
        case "{": brackets.append("}")
        case ")", "]", "}":
            guard brackets.popLast() == symbol else {
                throw TemplateError(line: line, "\"\(symbol)\" closes no bracket")
            }
        default: break
        }
    }

    private mutating func skipBlanks() {
        while index < source.count, source[index].isPythonSpace {
            if source[index] == "\n" { line += 1 }
            index += 1
        }
    }

    private mutating func lexElement() throws -> JinjaToken.Kind {
        let first = source[index]
        let firstLine = line
        let kind: JinjaToken.Kind
        if first == "'" || first == "\"" {
            kind = .string(try lexString(first))
        } else if first.isDigit {
            kind = try lexNumber()
        } else if first == "_" || first.properties.isXIDStart {
            let begin = index
            while index < source.count, source[index].properties.isXIDContinue { index += 1 }
            kind = .name(text(begin..<index))
        } else {
            kind = try lexSymbol()
        }
        tokens.append(JinjaToken(kind: kind, line: firstLine))
        return kind
    }

    private mutating func lexSymbol() throws -> JinjaToken.Kind {
        for symbol in Self.symbols {
            let scalars = symbol.unicodeScalars
            if source[index...].prefix(scalars.count).elementsEqual(scalars) {
                index += scalars.count
                return .symbol(symbol)
            }
        }
        throw TemplateError(line: line, "the character \(pythonRepr(String(source[index]))) has no meaning in a tag")
    }

    private mutating func lexNumber() throws -> JinjaToken.Kind {
        let begin = index
        func digits(_ isDigit: (Unicode.Scalar) -> Bool) {
            while index < source.count, isDigit(source[index]) || source[index] == "_" { index += 1 }
        }
        if source[index] == "0", index + 1 < source.count, let radix = Self.radix(source[index + 1]) {
            index += 2
            digits { $0.isHexDigit }
            guard let value = Int(text(begin + 2..<index).filter { $0 != "_" }, radix: radix) else {
                throw TemplateError(line: line, "\(text(begin..<index)) is no number")
            }
            return .integer(value)
        }
        digits(\.isDigit)
        var isFloat = false
        if index + 1 < source.count, source[index] == ".", source[index + 1].isDigit {
            isFloat = true
            index += 1
            digits(\.isDigit)
        }
        if index < source.count, source[index] == "e" || source[index] == "E" {
            var position = index + 1
            if position < source.count, source[position] == "+" || source[position] == "-" { position += 1 }
            if position < source.count, source[position].isDigit {
                isFloat = true
                index = position
                digits(\.isDigit)
            }
        }
        let digitsText = text(begin..<index).filter { $0 != "_" }
        if isFloat, let value = Double(digitsText) { return .float(value) }
        if !isFloat, let value = Int(digitsText) { return .integer(value) }
        throw TemplateError(line: line, "the number \(digitsText) is too large")
    }

    private static func radix(_ scalar: Unicode.Scalar) -> Int? {
        switch scalar {
        case "x", "X": 16
        case "o", "O": 8
        case "b", "B": 2
        default: nil
        }
    }

    private mutating func lexString(_ quote: Unicode.Scalar) throws -> String {
        let firstLine = line
        index += 1
        var value = String.UnicodeScalarView()
        while index < source.count {
            let scalar = source[index]
            index += 1
            if scalar == quote { return String(value) }
            if scalar == "\n" { line += 1 }
            if scalar == "\\" { try lexEscape(into: &value) } else { value.append(scalar) }
        }
        throw TemplateError(line: firstLine, "a string is not closed by \(quote)")
    }

    /// The escapes of Python's string literals; an unknown one stands for itself.
    private mutating func lexEscape(into value: inout String.UnicodeScalarView) throws {
        guard index < source.count else { return }
        let scalar = source[index]
        index += 1
        switch scalar {
        case "n": value.append("\n")
        case "t": value.append("\t")
        case "r": value.append("\r")
        case "a": value.append("\u{07}")
        case "b": value.append("\u{08}")
        case "f": value.append("\u{0C}")
        case "v": value.append("\u{0B}")
        case "\\", "'", "\"": value.append(scalar)
        case "\n": line += 1
        case "x": try lexCode(digits: 2, into: &value)
        case "u": try lexCode(digits: 4, into: &value)
        case "U": try lexCode(digits: 8, into: &value)
        case "0"..."7":
            var code = scalar.value - 48
            for _ in 0..<2 where index < source.count && ("0"..."7").contains(source[index]) {
                code = code * 8 + source[index].value - 48
                index += 1
            }
            if let scalar = Unicode.Scalar(code) { value.append(scalar) }
        case "N": throw TemplateError(line: line, "the escape \\N{...} in a string is not supported; use \\u")
        default:
            value.append("\\")
            value.append(scalar)
        }
    }

    private mutating func lexCode(digits: Int, into value: inout String.UnicodeScalarView) throws {
        let end = min(index + digits, source.count)
        let code = text(index..<end)
        guard code.unicodeScalars.count == digits, let number = UInt32(code, radix: 16),
            let scalar = Unicode.Scalar(number)
        else { throw TemplateError(line: line, "\\\(code) in a string is no character code") }
        index = end
        value.append(scalar)
    }
}
