/// A set of characters as PCRE2 writes it.
struct RegexSet {
    /// What stands between the brackets.
    var items = ""
    /// Whole expressions for sets that cannot stand between the same brackets.
    var nested: [String] = []
    var isNegated = false

    /// The set as an expression that matches one character.
    var expression: String {
        if nested.isEmpty { return "[\(isNegated ? "^" : "")\(items)]" }
        let parts = (items.isEmpty ? [] : ["[\(items)]"]) + nested
        let union = parts.count == 1 ? parts[0] : "(?:\(parts.joined(separator: "|")))"
        return isNegated ? "(?:(?!\(union))(?s:.))" : union
    }

    /// Adds the characters of another set.
    mutating func formUnion(_ other: RegexSet) {
        if other.isNegated || !other.nested.isEmpty {
            nested.append(other.expression)
        } else {
            items += other.items
        }
    }
}

/// Reads what stands between brackets, and the escapes that stand for sets.
struct RegexClassReader {
    let source: [Unicode.Scalar]
    /// The place of the reader; at first that of the opening bracket.
    private(set) var index: Int
    private var depth = 0

    init(source: [Unicode.Scalar], index: Int) {
        self.source = source
        self.index = index
    }

    private static func error(_ source: [Unicode.Scalar], _ index: Int, _ reason: String) -> RegexError {
        RegexError(
            "the regular expression \(pythonRepr(String(String.UnicodeScalarView(source)))) cannot be used: \(reason), "
                + "at character \(index)")
    }

    private func error(_ reason: String) -> RegexError { Self.error(source, index, reason) }

    private var next: Unicode.Scalar? { index < source.count ? source[index] : nil }

    /// Reads a set from its opening bracket to its closing one.
    mutating func read() throws -> RegexSet {
        depth += 1
        guard depth <= 32 else { throw error("the sets are nested too deeply") }
        defer { depth -= 1 }
        index += 1
        let isNegated = next == "^"
        if isNegated { index += 1 }
        var operands: [RegexSet] = []
        var current = RegexSet()
        var isFirst = true
        while true {
            guard let scalar = next else { throw error("a set is not closed") }
            if scalar == "]", !isFirst { break }
            isFirst = false
            if scalar == "&", index + 1 < source.count, source[index + 1] == "&" {
                index += 2
                operands.append(current)
                current = RegexSet()
            } else {
                try readItem(&current)
            }
        }
        index += 1
        operands.append(current)
        guard operands.allSatisfy({ !$0.items.isEmpty || !$0.nested.isEmpty }) else { throw error("a set is empty") }
        guard operands.count > 1 else {
            current.isNegated = isNegated
            return current
        }
        let conditions = operands.dropLast().map { "(?=\($0.expression))" }.joined()
        return RegexSet(nested: ["(?:\(conditions)\(current.expression))"], isNegated: isNegated)
    }

    private mutating func readItem(_ set: inout RegexSet) throws {
        if next == "[" {
            if let posix = try posixSet() { return set.formUnion(posix) }
            return set.formUnion(try read())
        }
        if let shorthand = try Self.shorthand(source, &index) { return set.formUnion(shorthand) }
        let low = try scalar()
        guard next == "-", index + 1 < source.count, source[index + 1] != "]", source[index + 1] != "[" else {
            set.items += Self.quoted(low)
            return
        }
        index += 1
        guard try Self.shorthand(source, &index) == nil else { throw error("a range ends with a set") }
        let high = try scalar()
        guard low.value <= high.value else { throw error("a range ends below its beginning") }
        set.items += Self.quoted(low) + "-" + Self.quoted(high)
    }

    private mutating func scalar() throws -> Unicode.Scalar {
        guard let scalar = next else { throw error("a set is not closed") }
        guard scalar == "\\" else {
            index += 1
            return scalar
        }
        if index + 1 < source.count, source[index + 1] == "b" {
            index += 2
            return "\u{8}"
        }
        return try Self.escapedScalar(source, &index)
    }

    /// `[:alpha:]`, `[:^alpha:]`.
    private mutating func posixSet() throws -> RegexSet? {
        guard index + 1 < source.count, source[index + 1] == ":" else { return nil }
        let negated = index + 2 < source.count && source[index + 2] == "^"
        let start = index + (negated ? 3 : 2)
        guard let end = source[min(start, source.count)...].firstIndex(of: ":"), end + 1 < source.count,
            source[end + 1] == "]"
        else { return nil }
        let name = String(String.UnicodeScalarView(source[start..<end]))
        guard RegexProperties.posixNames.contains(name), var set = RegexProperties.set(name) else {
            throw error("there is no set [:\(name):]")
        }
        index = end + 2
        set.isNegated = negated
        return set
    }

    // MARK: Escapes

    /// A set that is known by name.
    static func set(_ name: String) -> RegexSet { RegexProperties.set(name) ?? RegexSet() }

    /// Reads an escape that stands for a set, such as `\s` or `\p{L}`; nil, without moving, when there is none.
    static func shorthand(_ source: [Unicode.Scalar], _ index: inout Int) throws -> RegexSet? {
        guard source[index] == "\\", index + 1 < source.count else { return nil }
        let names: [Unicode.Scalar: String] = ["d": "nd", "w": "word", "s": "space", "h": "xdigit"]
        let letter = source[index + 1]
        if let name = names[letter] ?? names[letter.properties.lowercaseMapping.unicodeScalars.first ?? letter] {
            index += 2
            var result = set(name)
            result.isNegated = names[letter] == nil
            return result
        }
        guard letter == "p" || letter == "P" else { return nil }
        guard index + 2 < source.count, source[index + 2] == "{", let end = source[index...].firstIndex(of: "}") else {
            throw error(source, index, "a property needs a name in braces")
        }
        var name = source[(index + 3)..<end]
        let isInverted = name.first == "^"
        if isInverted { name = name.dropFirst() }
        let text = String(String.UnicodeScalarView(name))
        guard var result = RegexProperties.set(text) else {
            throw error(source, index, "the character property {\(text)} is not known")
        }
        index = end + 1
        result.isNegated = isInverted != (letter == "P")
        return result
    }

    /// Reads an escape that stands for one character.
    static func escapedScalar(_ source: [Unicode.Scalar], _ index: inout Int) throws -> Unicode.Scalar {
        guard index + 1 < source.count else { throw error(source, index, "the expression ends with a backslash") }
        let letter = source[index + 1]
        let controls: [Unicode.Scalar: Unicode.Scalar] = [
            "t": "\t", "n": "\n", "r": "\r", "f": "\u{C}", "v": "\u{B}", "a": "\u{7}", "e": "\u{1B}",
        ]
        if let control = controls[letter] {
            index += 2
            return control
        }
        switch letter {
        case "x", "u":
            return try hexadecimal(source, &index)
        case "0"..."9":
            throw error(source, index, "a character by its octal number is not supported")
        case "c", "C", "M", "y", "Y":
            throw error(source, index, "\\\(letter) is not supported")
        default:
            index += 2
            return letter
        }
    }

    /// `\x41`, `\x{1F600}`, `\u0041`.
    private static func hexadecimal(_ source: [Unicode.Scalar], _ index: inout Int) throws -> Unicode.Scalar {
        let inBraces = source[index + 1] == "x" && index + 2 < source.count && source[index + 2] == "{"
        let most = inBraces ? 8 : source[index + 1] == "x" ? 2 : 4
        var place = index + (inBraces ? 3 : 2)
        var value: UInt32 = 0
        var count = 0
        while count < most, place < source.count, source[place].isASCII,
            let digit = UInt32(String(source[place]), radix: 16)
        {
            value = value << 4 | digit
            place += 1
            count += 1
        }
        let isComplete =
            inBraces ? place < source.count && source[place] == "}" : source[index + 1] == "x" || count == 4
        // Two digits are a byte: above 7F no character.
        let isCharacter = inBraces || most == 4 || value < 0x80
        guard count > 0, isComplete, isCharacter, let scalar = Unicode.Scalar(value) else {
            throw error(source, index, "a character by its number is expected")
        }
        index = inBraces ? place + 1 : place
        return scalar
    }

    /// A character as PCRE2 takes it literally, inside and outside brackets.
    static func quoted(_ scalar: Unicode.Scalar) -> String {
        let isPlain =
            scalar.value > 0x7F || scalar == " " || ("0"..."9").contains(scalar) || scalar == "_"
            || ("a"..."z").contains(scalar) || ("A"..."Z").contains(scalar)
        return isPlain ? String(scalar) : "\\x{" + String(scalar.value, radix: 16) + "}"
    }
}
