import Formats

/// The filters of `value | filter`.
enum JinjaFilters {
    /// The names of the filters, and of their arguments in order.
    private static let parameters: [String: [String]] = [
        "abs": [], "attr": ["name"], "batch": ["linecount", "fill_with"], "capitalize": [], "center": ["width"],
        "default": ["default_value", "boolean"], "d": ["default_value", "boolean"],
        "dictsort": ["case_sensitive", "by", "reverse"], "first": [], "float": ["default"],
        "groupby": ["attribute", "default", "case_sensitive"],
        "indent": ["width", "first", "blank"], "int": ["default", "base"], "items": [], "join": ["d", "attribute"],
        "last": [], "length": [], "count": [], "list": [], "lower": [],
        "max": ["case_sensitive", "attribute"], "min": ["case_sensitive", "attribute"],
        "replace": ["old", "new", "count"],
        "reverse": [], "round": ["precision", "method"], "safe": [], "slice": ["slices", "fill_with"],
        "sort": ["reverse", "case_sensitive", "attribute"], "string": [],
        "sum": ["attribute", "start"], "title": [], "truncate": ["length", "killwords", "end", "leeway"],
        "wordcount": [],
        "tojson": ["ensure_ascii", "indent", "separators", "sort_keys"], "trim": ["chars"],
        "unique": ["case_sensitive", "attribute"], "upper": [],
    ]

    /// Filters that apply another filter or a test to each element.
    private static let elementwise: Set<String> = ["map", "select", "reject", "selectattr", "rejectattr"]

    /// Whether there is such a filter.
    static func exists(_ name: String) -> Bool {
        parameters[name] != nil || elementwise.contains(name) || name == "format"
    }

    /// Throws when there is no such filter.
    static func check(_ name: String, line: Int?) throws {
        guard !exists(name) else { return }
        let names = parameters.keys.sorted() + elementwise.sorted()
        throw TemplateError(
            line: line, "there is no filter \"\(name)\" here.\(suggestion(for: name, in: names))")
    }

    /// `value | name(arguments)`.
    static func apply(
        _ name: String, _ value: JinjaValue, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        if elementwise.contains(name) { return try JinjaElementFilters.apply(name, value, arguments) }
        if name == "format" {
            return try value.applying("%", arguments.named.isEmpty ? .tuple(arguments.positional) : named(arguments))
        }
        guard let names = parameters[name] else { throw TemplateError("there is no filter \"\(name)\" here") }
        let given = try arguments.bound(to: names, of: "the filter \"\(name)\"")
        switch name {
        case "default", "d":
            let isMissing = value.isUndefined || (given[1]?.isTrue == true && !value.isTrue)
            return isMissing ? given[0] ?? .string("") : value
        case "length", "count":
            guard let count = value.count else { throw TemplateError("\(value.kind) has no length") }
            return .integer(count)
        case "tojson": return try json(value, given)
        case "attr": return value.attribute(try requiredText(given[0], "attr"))
        case "wordcount": return .integer(try value.text().matchesOfWords)
        case "abs", "int", "float", "round": return try number(name, value, given)
        case "batch", "slice", "groupby", "max", "min", "sum":
            return try JinjaGroupingFilters.apply(name, value, given)
        case "first", "last", "list", "reverse", "items", "join", "sort", "unique", "dictsort":
            return try sequence(name, value, given)
        default: return .marked(try text(name, value, given))
        }
    }

    private static func named(_ arguments: JinjaCallArguments) throws -> JinjaValue {
        .dictionary(JinjaDictionary(names: arguments.named.lazy.map { ($0.name, $0.value) }))
    }

    private static func json(_ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaValue {
        var separators: (item: String, key: String)?
        if let given = given[2], !given.isNone {
            guard let parts = given.elements, parts.count == 2 else {
                throw TemplateError("the separators of tojson are two strings, not \(given.kind)")
            }
            separators = (try requiredText(parts[0], "tojson"), try requiredText(parts[1], "tojson"))
        }
        var indent = given[1]
        if indent?.isNone == true { indent = nil }
        if let width = indent?.wholeNumber, width > 64 { throw TemplateError("tojson indents by at most 64 blanks") }
        let text = try value.json().pythonText(
            indent: indent.map { max(0, $0.wholeNumber ?? 0) }, sortKeys: given[3]?.isTrue ?? false,
            ensureASCII: given[0]?.isTrue ?? false, separators: separators)
        var marks: [JinjaMark] = []
        value.collectMarks(&marks)
        return .string(text, marks: JinjaText.marks(covering: text.utf8.count, from: marks))
    }

    // MARK: Text

    private static func text(_ name: String, _ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaText {
        let text = try value.markedText()
        switch name {
        case "trim": return text[text.text.strippedRange(try optionalText(given[0], "trim"))]
        case "upper": return text.remade(text.text.uppercased())
        case "lower": return text.remade(text.text.lowercased())
        case "capitalize": return text.remade(text.text.pythonCapitalized)
        case "title": return text.remade(titled(text.text))
        case "center":
            let width = JinjaCallArguments(positional: [given[0] ?? .integer(80)])
            return try JinjaStringMethods.call("center", of: text, width).markedText()
        case "truncate": return try truncated(text, given)
        case "replace":
            guard let old = given[0], let new = given[1] else { throw TemplateError("replace needs two strings") }
            let limit = given[2]?.wholeNumber ?? -1
            return try JinjaStringMethods.replace(text, old.text(), new.markedText(), limit: limit)
        case "indent": return try indented(text, given)
        default: return text  // string, safe
        }
    }

    /// Cut to a length with an ellipsis, at the last blank unless words may be cut.
    private static func truncated(_ text: JinjaText, _ given: [JinjaValue?]) throws -> JinjaText {
        let length = given[0]?.wholeNumber ?? 255
        let end = try given[2]?.markedText() ?? JinjaText("...")
        let endLength = end.text.unicodeScalars.count
        guard length >= endLength else { throw TemplateError("truncate cuts to at least \(endLength) characters") }
        let scalars = text.text.unicodeScalars
        let leeway = given[3]?.wholeNumber ?? 5
        guard scalars.count - leeway > length else { return text }
        var kept = scalars.prefix(length - endLength)
        if given[1]?.isTrue != true, let blank = kept.lastIndex(of: " ") { kept = kept[..<blank] }
        return [text[0..<kept.reduce(0) { $0 + UTF8.width($1) }], end].joined()
    }

    /// Words, cut at blanks, hyphens and opening brackets, with a capital and the rest in lower case.
    private static func titled(_ text: String) -> String {
        var result = ""
        var beginsWord = true
        for scalar in text.unicodeScalars {
            let separates = scalar.isPythonSpace || "-({[<".unicodeScalars.contains(scalar)
            result += beginsWord && !separates ? scalar.properties.uppercaseMapping : scalar.properties.lowercaseMapping
            beginsWord = separates
        }
        return result
    }

    private static func indented(_ text: JinjaText, _ given: [JinjaValue?]) throws -> JinjaText {
        let blanks: String
        if case .string(let text, _) = given[0] {
            blanks = text
        } else {
            let width = max(0, given[0]?.wholeNumber ?? 4)
            try JinjaValue.checkSize(width)
            blanks = String(repeating: " ", count: width)
        }
        let indentsFirst = given[1]?.isTrue ?? false
        let indentsBlank = given[2]?.isTrue ?? false
        let ended = [text, JinjaText("\n")].joined()
        let lines = ended.text.lineRanges().map { ended[$0] }
        try JinjaValue.checkSize(blanks.utf8.count, times: lines.count)
        let margin = JinjaText(blanks)
        let rest = lines.dropFirst().map { $0.count == 0 && !indentsBlank ? $0 : [margin, $0].joined() }
        let whole = ([lines.first ?? JinjaText()] + rest).joined(by: JinjaText("\n"))
        return indentsFirst ? [margin, whole].joined() : whole
    }

    // MARK: Numbers

    private static func number(_ name: String, _ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaValue {
        switch name {
        case "abs":
            if let number = value.wholeNumber, number != .min { return .integer(abs(number)) }
            guard case .float(let number) = value else { throw TemplateError("abs does not work on \(value.kind)") }
            return .float(abs(number))
        case "int":
            let fallback = given[0] ?? .integer(0)
            if let number = value.wholeNumber { return .integer(number) }
            if case .float(let number) = value {
                return Int(exactly: number.rounded(.towardZero)).map { .integer($0) } ?? fallback
            }
            guard case .string(let text, _) = value else { return fallback }
            let trimmed = text.stripped()
            if let number = Int(trimmed, radix: radix(given[1])) { return .integer(number) }
            return Double(trimmed).flatMap { Int(exactly: $0.rounded(.towardZero)) }.map { .integer($0) } ?? fallback
        case "float":
            if let number = value.number { return .float(number) }
            if case .string(let text, _) = value, let number = Double(text.stripped()) { return .float(number) }
            return given[0] ?? .float(0)
        default: return try rounded(value, given)
        }
    }

    private static func radix(_ value: JinjaValue?) -> Int {
        guard let radix = value?.wholeNumber, (2...36).contains(radix) else { return 10 }
        return radix
    }

    private static func rounded(_ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaValue {
        guard let number = value.number else { throw TemplateError("round does not work on \(value.kind)") }
        let precision = given[0]?.wholeNumber ?? 0
        guard (0...15).contains(precision) else { throw TemplateError("round takes 0 to 15 digits, not \(precision)") }
        let method = try given[1]?.text() ?? "common"
        var scale = 1.0
        for _ in 0..<precision { scale *= 10 }
        switch method {
        case "common":
            if let whole = value.wholeNumber { return .integer(whole) }
            if precision == 0 { return .float(number.rounded(.toNearestOrEven)) }
            // Python rounds the exact decimal value; so does printing with a fixed number of digits.
            return .float(Double(fixed(number, digits: precision)) ?? number)
        case "ceil": return .float((number * scale).rounded(.up) / scale)
        case "floor": return .float((number * scale).rounded(.down) / scale)
        default: throw TemplateError("the method of round is common, ceil or floor, not \(pythonRepr(method))")
        }
    }

    // MARK: Sequences

    private static func sequence(_ name: String, _ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaValue {
        if name == "items" || name == "dictsort" {
            if name == "items", value.isUndefined { return .list([]) }
            guard case .dictionary(let pairs) = value else {
                throw TemplateError("the filter \"\(name)\" works on a dictionary, not on \(value.kind)")
            }
            return name == "items" ? JinjaMethods.items(of: pairs) : try dictionarySorted(pairs, given)
        }
        if name == "reverse", case .string(let text, let marks) = value {
            return .marked(JinjaText(text, marks: marks).remade(String(text.unicodeScalars.reversed())))
        }
        guard let elements = value.elements else {
            throw TemplateError("the filter \"\(name)\" works on a sequence, not on \(value.kind)")
        }
        switch name {
        case "first": return elements.first ?? .undefined("the sequence is empty and has no first element")
        case "last": return elements.last ?? .undefined("the sequence is empty and has no last element")
        case "reverse": return .list(elements.reversed())
        case "join": return .marked(try joined(elements, given))
        case "sort":
            let keys = try elements.map {
                try key(of: $0, attribute: given[2], isCaseSensitive: given[1]?.isTrue ?? false)
            }
            return .list(try sorted(elements, by: keys, isReversed: given[0]?.isTrue ?? false))
        case "unique":
            var seen: [JinjaValue] = []
            return .list(
                try elements.filter {
                    let key = try key(of: $0, attribute: given[1], isCaseSensitive: given[0]?.isTrue ?? false)
                    guard !seen.contains(where: { $0.isEqual(to: key) }) else { return false }
                    seen.append(key)
                    return true
                })
        default: return .list(elements)
        }
    }

    private static func joined(_ elements: [JinjaValue], _ given: [JinjaValue?]) throws -> JinjaText {
        let separator = try given[0]?.markedText() ?? JinjaText()
        let extract = given[1].map { JinjaElementFilters.attribute($0) } ?? { $0 }
        let parts = try elements.map { try extract($0).markedText() }
        try JinjaValue.checkSize(parts.reduce(0) { $0 + $1.count })
        try JinjaValue.checkSize(separator.count, times: parts.count)
        return parts.joined(by: separator)
    }

    private static func dictionarySorted(
        _ pairs: JinjaDictionary, _ given: [JinjaValue?]
    ) throws -> JinjaValue {
        let by = try given[1]?.text() ?? "key"
        guard by == "key" || by == "value" else { throw TemplateError("dictsort sorts by key or value") }
        let isCaseSensitive = given[0]?.isTrue ?? false
        let keys = try pairs.entries.map {
            try key(of: by == "key" ? $0.key : $0.value, attribute: nil, isCaseSensitive: isCaseSensitive)
        }
        let items = JinjaMethods.items(of: pairs).elements ?? []
        return .list(try sorted(items, by: keys, isReversed: given[2]?.isTrue ?? false))
    }

    /// What elements are compared by: themselves or an attribute, without case unless it counts.
    static func key(
        of value: JinjaValue, attribute: JinjaValue?, isCaseSensitive: Bool
    ) throws -> JinjaValue {
        var value = value
        if let attribute, !attribute.isNone { value = try JinjaElementFilters.attribute(attribute)(value) }
        if !isCaseSensitive, case .string(let text, _) = value { return .string(text.lowercased()) }
        return value
    }

    /// A stable sort, as Python's; reversed, equal elements keep their order too.
    static func sorted(
        _ elements: [JinjaValue], by keys: [JinjaValue], isReversed: Bool
    ) throws -> [JinjaValue] {
        let order = try elements.indices.sorted { a, b in
            if isReversed ? try keys[b].precedes(keys[a]) : try keys[a].precedes(keys[b]) { return true }
            if isReversed ? try keys[a].precedes(keys[b]) : try keys[b].precedes(keys[a]) { return false }
            return a < b
        }
        return order.map { elements[$0] }
    }
}
