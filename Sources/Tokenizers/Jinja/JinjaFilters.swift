import Formats

/// The filters of `value | filter`.
enum JinjaFilters {
    /// The names of the filters, and of their arguments in order.
    private static let parameters: [String: [String]] = [
        "abs": [], "capitalize": [], "default": ["default_value", "boolean"], "d": ["default_value", "boolean"],
        "dictsort": ["case_sensitive", "by", "reverse"], "first": [], "float": ["default"],
        "indent": ["width", "first", "blank"], "int": ["default", "base"], "items": [], "join": ["d", "attribute"],
        "last": [], "length": [], "count": [], "list": [], "lower": [], "replace": ["old", "new", "count"],
        "reverse": [], "round": ["precision", "method"], "safe": [],
        "sort": ["reverse", "case_sensitive", "attribute"], "string": [], "title": [],
        "tojson": ["ensure_ascii", "indent", "separators", "sort_keys"], "trim": ["chars"],
        "unique": ["case_sensitive", "attribute"], "upper": [],
    ]

    /// Filters that apply another filter or a test to each element.
    private static let elementwise: Set<String> = ["map", "select", "reject", "selectattr", "rejectattr"]

    /// Throws when there is no such filter.
    static func check(_ name: String, line: Int?) throws {
        guard parameters[name] == nil, !elementwise.contains(name) else { return }
        let names = parameters.keys.sorted() + elementwise.sorted()
        throw TemplateError(
            line: line, "there is no filter \"\(name)\" here.\(suggestion(for: name, in: names))")
    }

    /// `value | name(arguments)`.
    static func apply(
        _ name: String, _ value: JinjaValue, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        if elementwise.contains(name) { return try JinjaElementFilters.apply(name, value, arguments) }
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
        case "abs", "int", "float", "round": return try number(name, value, given)
        case "first", "last", "list", "reverse", "items", "join", "sort", "unique", "dictsort":
            return try sequence(name, value, given)
        default: return .string(try text(name, value, given))
        }
    }

    private static func json(_ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaValue {
        if let separators = given[2], case .none = separators {
        } else if given[2] != nil {
            throw TemplateError("the argument \"separators\" of tojson is not supported")
        }
        let text = try value.json().pythonText(
            indent: given[1]?.wholeNumber, sortKeys: given[3]?.isTrue ?? false, ensureASCII: given[0]?.isTrue ?? false)
        return .string(text)
    }

    // MARK: Text

    private static func text(_ name: String, _ value: JinjaValue, _ given: [JinjaValue?]) throws -> String {
        let text = try value.text()
        switch name {
        case "trim": return text.stripped(try JinjaMethods.optionalText(given[0], "trim"))
        case "upper": return text.uppercased()
        case "lower": return text.lowercased()
        case "capitalize": return text.pythonCapitalized
        case "title": return titled(text)
        case "replace":
            guard let old = given[0], let new = given[1] else { throw TemplateError("replace needs two strings") }
            let limit = given[2]?.wholeNumber ?? -1
            return try JinjaMethods.replace(text, old.text(), new.text(), limit: limit)
        case "indent": return try indented(text, given)
        default: return text  // string, safe
        }
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

    private static func indented(_ text: String, _ given: [JinjaValue?]) throws -> String {
        let blanks: String
        if case .string(let text) = given[0] {
            blanks = text
        } else {
            let width = max(0, given[0]?.wholeNumber ?? 4)
            try JinjaValue.checkSize(width)
            blanks = String(repeating: " ", count: width)
        }
        let indentsFirst = given[1]?.isTrue ?? false
        let indentsBlank = given[2]?.isTrue ?? false
        let lines = (text + "\n").splitPythonLines()
        try JinjaValue.checkSize(blanks.utf8.count, times: lines.count)
        let rest = lines.dropFirst().map { $0.isEmpty && !indentsBlank ? $0 : blanks + $0 }
        return (indentsFirst ? blanks : "") + ([lines.first ?? ""] + rest).joined(separator: "\n")
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
            guard case .string(let text) = value else { return fallback }
            let trimmed = text.stripped()
            if let number = Int(trimmed, radix: radix(given[1])) { return .integer(number) }
            return Double(trimmed).flatMap { Int(exactly: $0.rounded(.towardZero)) }.map { .integer($0) } ?? fallback
        case "float":
            if let number = value.number { return .float(number) }
            if case .string(let text) = value, let number = Double(text.stripped()) { return .float(number) }
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
        if name == "reverse", case .string(let text) = value { return .string(String(text.unicodeScalars.reversed())) }
        guard let elements = value.elements else {
            throw TemplateError("the filter \"\(name)\" works on a sequence, not on \(value.kind)")
        }
        switch name {
        case "first": return elements.first ?? .undefined("the sequence is empty and has no first element")
        case "last": return elements.last ?? .undefined("the sequence is empty and has no last element")
        case "reverse": return .list(elements.reversed())
        case "join": return .string(try joined(elements, given))
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

    private static func joined(_ elements: [JinjaValue], _ given: [JinjaValue?]) throws -> String {
        let separator = try given[0]?.text() ?? ""
        let parts = try elements.map { try (given[1].map { JinjaElementFilters.attribute($0) } ?? { $0 })($0).text() }
        try JinjaValue.checkSize(parts.reduce(0) { $0 + $1.utf8.count } + separator.utf8.count * parts.count)
        return parts.joined(separator: separator)
    }

    private static func dictionarySorted(
        _ pairs: KeyedList<JinjaValue>, _ given: [JinjaValue?]
    ) throws -> JinjaValue {
        let by = try given[1]?.text() ?? "key"
        guard by == "key" || by == "value" else { throw TemplateError("dictsort sorts by key or value") }
        let isCaseSensitive = given[0]?.isTrue ?? false
        let keys = try pairs.map {
            try key(of: by == "key" ? .string($0.key) : $0.value, attribute: nil, isCaseSensitive: isCaseSensitive)
        }
        let items = JinjaMethods.items(of: pairs).elements ?? []
        return .list(try sorted(items, by: keys, isReversed: given[2]?.isTrue ?? false))
    }

    private static func key(
        of value: JinjaValue, attribute: JinjaValue?, isCaseSensitive: Bool
    ) throws -> JinjaValue {
        var value = value
        if let attribute, !attribute.isNone { value = try JinjaElementFilters.attribute(attribute)(value) }
        if !isCaseSensitive, case .string(let text) = value { return .string(text.lowercased()) }
        return value
    }

    /// A stable sort, as Python's; reversed, equal elements keep their order too.
    private static func sorted(
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

extension JinjaValue {
    var isNone: Bool {
        if case .none = self { true } else { false }
    }
}
