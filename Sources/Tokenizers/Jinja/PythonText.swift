/// Text as Python's `str` sees it: a sequence of Unicode scalars. Chat templates are written for that.
extension Unicode.Scalar {
    /// `str.isspace` for one character.
    var isPythonSpace: Bool {
        switch value {
        case 0x09...0x0D, 0x1C...0x20, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000: true
        default: false
        }
    }

    /// `str.isalpha` for one character.
    var isLetter: Bool {
        switch properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
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

    /// Whether a character has case.
    var isCased: Bool { unicodeScalars.contains { $0.properties.isCased } }

    /// `strip`, `lstrip`, `rstrip`: without `characters` (default: white space) at the chosen ends.
    func stripped(_ characters: String? = nil, left: Bool = true, right: Bool = true) -> String {
        let range = strippedRange(characters, left: left, right: right)
        return String(decoding: utf8.dropFirst(range.lowerBound).prefix(range.count), as: UTF8.self)
    }

    /// The bytes that ``stripped(_:left:right:)`` leaves.
    func strippedRange(_ characters: String? = nil, left: Bool = true, right: Bool = true) -> Range<Int> {
        let set = characters.map { Set($0.unicodeScalars) }
        func isStripped(_ scalar: Unicode.Scalar) -> Bool { set?.contains(scalar) ?? scalar.isPythonSpace }
        var rest = unicodeScalars[...]
        var (start, end) = (0, utf8.count)
        while left, let first = rest.first, isStripped(first) {
            rest.removeFirst()
            start += UTF8.width(first)
        }
        while right, let last = rest.last, isStripped(last) {
            rest.removeLast()
            end -= UTF8.width(last)
        }
        return start..<max(start, end)
    }

    /// Bytes at which `part` begins, without overlap, from the left or from the right; `part` must not be empty.
    private func occurrences(of part: [UInt8], in text: [UInt8], limit: Int, fromRight: Bool = false) -> [Int] {
        var found: [Int] = []
        func isHere(_ index: Int) -> Bool {
            text[index] == part[0] && text[index..<index + part.count].elementsEqual(part)
        }
        if fromRight {
            var index = text.count - part.count
            while index >= 0, found.count < limit {
                if isHere(index) { found.append(index) }
                index -= found.last == index ? part.count : 1
            }
            return found.reversed()
        }
        var index = 0
        while index + part.count <= text.count, found.count < limit {
            if isHere(index) { found.append(index) }
            index += found.last == index ? part.count : 1
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

    /// `find`, `rfind`: the scalar offset of the first or last occurrence, or -1.
    func offsetOfText(_ part: String, fromRight: Bool = false) -> Int {
        if part.utf8.isEmpty { return fromRight ? unicodeScalars.count : 0 }
        let text = Array(utf8)
        let found = occurrences(of: Array(part.utf8), in: text, limit: 1, fromRight: fromRight)
        guard let place = found.first else { return -1 }
        return String(decoding: text[..<place], as: UTF8.self).unicodeScalars.count
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
        return ranges(by: separator, limit: limit).map { String(decoding: text[$0], as: UTF8.self) }
    }

    /// The bytes of the parts that `split` and `rsplit` give; the separator must not be empty.
    func ranges(by separator: String, limit: Int = .max, fromRight: Bool = false) -> [Range<Int>] {
        let part = Array(separator.utf8)
        var ranges: [Range<Int>] = []
        var begin = 0
        for place in occurrences(of: part, in: Array(utf8), limit: limit, fromRight: fromRight) {
            ranges.append(begin..<place)
            begin = place + part.count
        }
        return ranges + [begin..<utf8.count]
    }

    /// The bytes of the parts between runs of white space, which also fall away at the ends: `split()`, `rsplit()`.
    func wordRanges(limit: Int = .max, fromRight: Bool = false) -> [Range<Int>] {
        var words: [Range<Int>] = []
        var begin: Int?
        var offset = 0
        for scalar in unicodeScalars {
            if scalar.isPythonSpace {
                if let start = begin { words.append(start..<offset) }
                begin = nil
            } else if begin == nil {
                begin = offset
            }
            offset += UTF8.width(scalar)
        }
        if let begin { words.append(begin..<offset) }
        guard words.count > limit else { return words }
        // What is not cut any more keeps the white space within it and, at the far end, after it.
        if fromRight {
            let rest = words.count - limit
            return [0..<words[rest - 1].upperBound] + words[rest...]
        }
        return words[..<limit] + [words[limit].lowerBound..<offset]
    }

    /// The bytes of the lines that `splitlines` gives.
    func lineRanges(keepsEnds: Bool = false) -> [Range<Int>] {
        var lines: [Range<Int>] = []
        var (begin, offset) = (0, 0)
        var wasReturn = false
        for scalar in unicodeScalars {
            let end = offset + UTF8.width(scalar)
            if wasReturn, scalar == "\n" {
                // Part of the line end that the carriage return began.
                if keepsEnds, let last = lines.popLast() { lines.append(last.lowerBound..<end) }
                begin = end
            } else {
                switch scalar.value {
                case 0x0A...0x0D, 0x1C...0x1E, 0x85, 0x2028, 0x2029:
                    lines.append(begin..<(keepsEnds ? end : offset))
                    begin = end
                default: break
                }
            }
            wasReturn = scalar == "\r"
            offset = end
        }
        return begin < offset ? lines + [begin..<offset] : lines
    }

    /// How many runs of letters, digits and underscores there are.
    var matchesOfWords: Int {
        var count = 0
        var isInWord = false
        for scalar in unicodeScalars {
            let isWord = scalar == "_" || scalar.isLetter || scalar.properties.numericType != nil
            if isWord, !isInWord { count += 1 }
            isInWord = isWord
        }
        return count
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
