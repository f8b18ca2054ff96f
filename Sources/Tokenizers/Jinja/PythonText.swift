/// Text as Python's `str` sees it: a sequence of Unicode scalars. Chat templates are written for that.
extension Unicode.Scalar {
    /// `str.isspace` for one character.
    var isPythonSpace: Bool {
        switch value {
        case 0x09...0x0D, 0x1C...0x20, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000: true
        default: false
        }
    }

    var isDigit: Bool { ("0"..."9").contains(self) }

    var isHexDigit: Bool { properties.isASCIIHexDigit }
}

extension String {
    init(_ scalars: some Sequence<Unicode.Scalar>) {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        self.init(view)
    }

    /// Equality of scalars; `==` would be canonical equivalence.
    func hasSameScalars(as other: String) -> Bool {
        utf8.count == other.utf8.count && utf8.elementsEqual(other.utf8)
    }

    /// Order by code point, which is the order of UTF-8.
    func precedesByScalars(_ other: String) -> Bool {
        utf8.lexicographicallyPrecedes(other.utf8)
    }

    /// `strip`, `lstrip`, `rstrip`: without `characters` (default: white space) at the chosen ends.
    func stripped(_ characters: String? = nil, left: Bool = true, right: Bool = true) -> String {
        let set = characters.map { Set($0.unicodeScalars) }
        func isStripped(_ scalar: Unicode.Scalar) -> Bool { set?.contains(scalar) ?? scalar.isPythonSpace }
        var rest = unicodeScalars[...]
        while left, let first = rest.first, isStripped(first) { rest.removeFirst() }
        while right, let last = rest.last, isStripped(last) { rest.removeLast() }
        return String(rest)
    }

    /// Scalar offsets at which `part` occurs, without overlap, from the left; `part` must not be empty.
    private func occurrences(of part: [UInt8], in text: [UInt8], limit: Int) -> [Int] {
        var found: [Int] = []
        var index = 0
        while index + part.count <= text.count, found.count < limit {
            if text[index] == part[0], text[index..<index + part.count].elementsEqual(part) {
                found.append(index)
                index += part.count
            } else {
                index += 1
            }
        }
        return found
    }

    /// `part in self`.
    func containsText(_ part: String) -> Bool {
        part.utf8.isEmpty || !occurrences(of: Array(part.utf8), in: Array(utf8), limit: 1).isEmpty
    }

    /// `count`: occurrences without overlap.
    func countOfText(_ part: String) -> Int {
        if part.utf8.isEmpty { return unicodeScalars.count + 1 }
        return occurrences(of: Array(part.utf8), in: Array(utf8), limit: .max).count
    }

    /// `find`: the scalar offset of the first occurrence, or -1.
    func offsetOfText(_ part: String) -> Int {
        if part.utf8.isEmpty { return 0 }
        let text = Array(utf8)
        guard let first = occurrences(of: Array(part.utf8), in: text, limit: 1).first else { return -1 }
        return String(decoding: text[..<first], as: UTF8.self).unicodeScalars.count
    }

    /// `replace`, at most `limit` times.
    func replacingText(_ old: String, with new: String, limit: Int = .max) -> String {
        guard limit > 0 else { return self }
        if old.utf8.isEmpty {
            var result = ""
            var replaced = 0
            for scalar in unicodeScalars {
                if replaced < limit { result += new }
                replaced += 1
                result.unicodeScalars.append(scalar)
            }
            return replaced < limit ? result + new : result
        }
        return split(by: old, limit: limit).joined(separator: new)
    }

    /// `split(separator, maxsplit)`; the separator must not be empty.
    func split(by separator: String, limit: Int = .max) -> [String] {
        let text = Array(utf8)
        let part = Array(separator.utf8)
        var pieces: [String] = []
        var begin = 0
        for place in occurrences(of: part, in: text, limit: limit) {
            pieces.append(String(decoding: text[begin..<place], as: UTF8.self))
            begin = place + part.count
        }
        pieces.append(String(decoding: text[begin...], as: UTF8.self))
        return pieces
    }

    /// `split()`: by runs of white space, which also fall away at the ends.
    func splitByWhitespace(limit: Int = .max) -> [String] {
        var pieces: [String] = []
        var rest = unicodeScalars[...]
        while true {
            while let first = rest.first, first.isPythonSpace { rest.removeFirst() }
            guard !rest.isEmpty else { return pieces }
            guard pieces.count < limit else { return pieces + [String(rest)] }
            let piece = rest.prefix { !$0.isPythonSpace }
            pieces.append(String(piece))
            rest = rest[piece.endIndex...]
        }
    }

    /// `splitlines()`.
    func splitPythonLines() -> [String] {
        var lines: [String] = []
        var line = String.UnicodeScalarView()
        var wasReturn = false
        var isOpen = false
        for scalar in unicodeScalars {
            if wasReturn, scalar == "\n" {
                wasReturn = false
                continue
            }
            wasReturn = scalar == "\r"
            switch scalar.value {
            case 0x0A...0x0D, 0x1C...0x1E, 0x85, 0x2028, 0x2029:
                lines.append(String(line))
                line = String.UnicodeScalarView()
                isOpen = false
            default:
                line.append(scalar)
                isOpen = true
            }
        }
        return isOpen ? lines + [String(line)] : lines
    }

    /// `capitalize`: the first character in title case, the rest in lower case.
    var pythonCapitalized: String {
        guard let first = unicodeScalars.first else { return "" }
        return first.properties.titlecaseMapping + String(unicodeScalars.dropFirst()).lowercased()
    }

    /// `title`: a letter after a non-letter in title case, other letters in lower case.
    var pythonTitled: String {
        var result = ""
        var isInWord = false
        for scalar in unicodeScalars {
            let properties = scalar.properties
            result += isInWord ? properties.lowercaseMapping : properties.titlecaseMapping
            isInWord = properties.isCased
        }
        return result
    }
}

/// `repr` of a string.
func pythonRepr(_ text: String) -> String {
    let quote: Unicode.Scalar = text.containsText("'") && !text.containsText("\"") ? "\"" : "'"
    var result = String.UnicodeScalarView([quote])
    func append(_ text: String) { result.append(contentsOf: text.unicodeScalars) }
    func hex(_ value: UInt32, digits: Int) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
    }
    for scalar in text.unicodeScalars {
        switch scalar {
        case quote, "\\":
            result.append("\\")
            result.append(scalar)
        case "\n": append("\\n")
        case "\r": append("\\r")
        case "\t": append("\\t")
        case _ where isPrintable(scalar): result.append(scalar)
        default:
            switch scalar.value {
            case 0..<0x100: append("\\x" + hex(scalar.value, digits: 2))
            case 0x100..<0x1_0000: append("\\u" + hex(scalar.value, digits: 4))
            default: append("\\U" + hex(scalar.value, digits: 8))
            }
        }
    }
    result.append(quote)
    return String(result)
}

/// `str.isprintable` for one character.
private func isPrintable(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: false
    case .spaceSeparator: scalar == " "
    default: true
    }
}
