/// Writes an expression of Oniguruma's Ruby syntax so that PCRE2 matches the same.
///
/// The classes are spelled out where the two differ: in white space, word characters, hexadecimal digits, scripts and the
/// characters that Unicode has gained since PCRE2's tables were made. A construct that has no equal is refused.
struct RegexTranslation {
    private let source: [Unicode.Scalar]
    private var index = 0
    private var output: [Unicode.Scalar] = []
    /// Where the last thing that can be repeated begins in `output`.
    private var atom: Int?
    /// Whether that thing is repeated already.
    private var isRepeated = false
    private var groups: [Group] = []

    private struct Group {
        let start: Int
        /// How many groups that the translation has opened end with this one.
        var extra = 0
    }

    /// Translates an expression.
    ///
    /// - Throws: ``RegexError`` when it has no equal.
    static func pcre2(_ pattern: String) throws -> String {
        var translation = RegexTranslation(pattern)
        return try translation.translated()
    }

    private init(_ pattern: String) {
        source = Array(pattern.unicodeScalars)
    }

    private func error(_ reason: String) -> RegexError {
        RegexError(
            "the regular expression \(pythonRepr(String(String.UnicodeScalarView(source)))) cannot be used: \(reason), "
                + "at character \(index)")
    }

    private var next: Unicode.Scalar? { index < source.count ? source[index] : nil }

    private func peek(_ offset: Int) -> Unicode.Scalar? {
        index + offset < source.count ? source[index + offset] : nil
    }

    private mutating func emit(_ text: String) { output.append(contentsOf: text.unicodeScalars) }

    private mutating func emitAtom(_ text: String) {
        atom = output.count
        isRepeated = false
        emit(text)
    }

    private mutating func translated() throws -> String {
        var top = Group(start: 0)
        while let scalar = next {
            switch scalar {
            case "\\": try escape()
            case "[":
                var reader = RegexClassReader(source: source, index: index)
                emitAtom(try reader.read().expression)
                index = reader.index
            case "(": try open(&top)
            case ")": try close()
            case "|":
                index += 1
                atom = nil
                emit("|")
            case "*", "+", "?": try quantify()
            case "{": try brace()
            case "^", "$":
                index += 1
                emitAtom(String(scalar))
            case "#", "]", "}":
                index += 1
                emitAtom("\\" + String(scalar))
            default:
                index += 1
                emitAtom(String(scalar))
            }
        }
        guard groups.isEmpty else { throw error("a parenthesis is not closed") }
        emit(String(repeating: ")", count: top.extra))
        return String(String.UnicodeScalarView(output))
    }

    // MARK: Groups

    private mutating func open(_ top: inout Group) throws {
        guard peek(1) == "?" else {
            index += 1
            return begin("(")
        }
        switch peek(2) {
        case "#":
            while let scalar = next, scalar != ")" { index += scalar == "\\" ? 2 : 1 }
            guard next == ")" else { throw error("a comment is not closed") }
            index += 1
        case ":", "=", "!", ">": try beginCopying(3)
        case "<" where peek(3) == "=" || peek(3) == "!": try beginCopying(4)
        case "<", "'": try beginNamed()
        default: try options(&top)
        }
    }

    private mutating func begin(_ text: String) {
        groups.append(Group(start: output.count))
        atom = nil
        emit(text)
    }

    private mutating func beginCopying(_ count: Int) throws {
        let text = String(String.UnicodeScalarView(source[index..<min(index + count, source.count)]))
        index += count
        begin(text)
    }

    private mutating func beginNamed() throws {
        let end: Unicode.Scalar = peek(2) == "<" ? ">" : "'"
        guard let stop = source[(index + 3)...].firstIndex(of: end) else { throw error("a group's name is not closed") }
        try beginCopying(stop + 1 - index)
    }

    /// `(?i)`, `(?m-i:`: `m` is what Perl calls `s`.
    private mutating func options(_ top: inout Group) throws {
        index += 2
        var text = "(?"
        while let scalar = next, scalar != ")", scalar != ":" {
            switch scalar {
            case "i", "-": text += String(scalar)
            case "m": text += "s"
            default: throw error("the group option '\(scalar)' is not supported")
            }
            index += 1
        }
        guard let end = next else { throw error("a group option is not closed") }
        index += 1
        if end == ":" { return begin(text + ":") }
        // An option that stands alone holds for the rest of its group as one branch.
        if groups.isEmpty { top.extra += 1 } else { groups[groups.count - 1].extra += 1 }
        atom = nil
        emit(text + ":")
    }

    private mutating func close() throws {
        guard let group = groups.popLast() else { throw error("a parenthesis is closed that was not opened") }
        index += 1
        emit(String(repeating: ")", count: group.extra + 1))
        atom = group.start
        isRepeated = false
    }

    // MARK: Repetition

    /// Makes the last thing one that can be repeated once more.
    private mutating func wrapRepeated() throws {
        guard let atom else { throw error("there is nothing to repeat") }
        guard isRepeated else { return }
        output.insert(contentsOf: "(?:".unicodeScalars, at: atom)
        emit(")")
        isRepeated = false
    }

    private mutating func quantify() throws {
        try wrapRepeated()
        emit(String(source[index]))
        index += 1
        if let mode = next, mode == "?" || mode == "+" {
            emit(String(mode))
            index += 1
        }
        isRepeated = true
    }

    private mutating func brace() throws {
        guard let (low, high, length) = interval() else {
            index += 1
            return emitAtom("\\{")
        }
        try wrapRepeated()
        guard (high ?? low) >= low else { throw error("the repetition ends below its beginning") }
        index += length
        emit(high == low ? "{\(low)}" : "{\(low),\(high.map { "\($0)" } ?? "")}")
        isRepeated = true
        // After a plain count a question mark makes the whole optional; after a range it makes it lazy.
        guard next == "?", high != low else { return }
        index += 1
        emit("?")
    }

    private func interval() -> (low: Int, high: Int?, length: Int)? {
        var place = index + 1
        func number() -> Int? {
            var value: Int?
            while place < source.count, let digit = Int(String(source[place])), source[place].isASCII {
                guard (value ?? 0) < 1_000_000 else { return nil }
                value = (value ?? 0) * 10 + digit
                place += 1
            }
            return value
        }
        let low = number()
        var high = low
        if place < source.count, source[place] == "," {
            place += 1
            high = number()
            guard low != nil || high != nil else { return nil }
        }
        guard place < source.count, source[place] == "}", low != nil || high != nil else { return nil }
        return (low ?? 0, high, place + 1 - index)
    }

    // MARK: Escapes

    /// Outside brackets Oniguruma's table of Latin-1 decides, which takes superscripts and fractions for parts of words.
    private static func word(isNegated: Bool) -> String {
        var set = RegexClassReader.set("word")
        set.items += "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
        set.isNegated = isNegated
        return set.expression
    }

    private mutating func escape() throws {
        guard let letter = peek(1) else { throw error("the expression ends with a backslash") }
        if letter == "w" || letter == "W" {
            index += 2
            return emitAtom(Self.word(isNegated: letter == "W"))
        }
        if let set = try RegexClassReader.shorthand(source, &index) { return emitAtom(set.expression) }
        switch letter {
        case "b", "B":
            index += 2
            let word = Self.word(isNegated: false)
            let edge = "(?:(?<=\(word))(?!\(word))|(?<!\(word))(?=\(word)))"
            emitAtom(letter == "b" ? edge : "(?!\(edge))")
        case "O":
            index += 2
            emitAtom("(?s:.)")
        case "A", "z", "Z", "G", "K", "R", "X", "N", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9":
            index += 2
            emitAtom("\\" + String(letter))
        case "k", "g":
            guard peek(2) == "<", let stop = source[index...].firstIndex(of: ">") else {
                index += 2
                return emitAtom(String(letter))
            }
            emitAtom(String(String.UnicodeScalarView(source[index...stop])))
            index = stop + 1
        default:
            emitAtom(RegexClassReader.quoted(try RegexClassReader.escapedScalar(source, &index)))
        }
    }
}
