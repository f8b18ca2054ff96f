/// The methods of strings that templates may call.
enum JinjaStringMethods {
    static let names: Set<String> = [
        "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition", "startswith",
        "endswith", "removeprefix", "removesuffix", "upper", "lower", "casefold", "swapcase", "title", "capitalize",
        "replace", "find", "rfind", "index", "rindex", "count", "join", "center", "ljust", "rjust", "zfill", "format",
        "isdigit", "isdecimal", "isnumeric", "isalpha", "isalnum", "isspace", "isupper", "islower",
    ]

    static func call(_ name: String, of text: JinjaText, _ arguments: JinjaCallArguments) throws -> JinjaValue {
        switch name {
        case "strip", "lstrip", "rstrip":
            let characters = try optionalText(arguments.bound(to: ["chars"], of: name)[0], name)
            return .marked(
                text[text.text.strippedRange(characters, left: name != "rstrip", right: name != "lstrip")])
        case "split", "rsplit": return try split(text, arguments, fromRight: name == "rsplit")
        case "splitlines":
            let keepsEnds = try arguments.bound(to: ["keepends"], of: name)[0]?.isTrue ?? false
            return .list(text.text.lineRanges(keepsEnds: keepsEnds).map { .marked(text[$0]) })
        case "partition", "rpartition": return try partition(text, arguments, fromRight: name == "rpartition")
        case "startswith", "endswith", "removeprefix", "removesuffix": return try affix(name, text, arguments)
        case "replace":
            let values = try arguments.bound(to: ["old", "new", "count"], of: "replace()")
            return .marked(
                try replace(
                    text, requiredText(values[0], name), requiredMarkedText(values[1], name),
                    limit: values[2]?.wholeNumber ?? -1))
        case "find", "rfind", "index", "rindex", "count": return try search(name, text.text, arguments)
        case "join":
            let values = try arguments.bound(to: ["iterable"], of: "join()")
            guard let parts = values[0]?.elements else { throw TemplateError("join() needs a list") }
            let texts = try parts.map { try requiredMarkedText($0, "join") }
            try JinjaValue.checkSize(texts.reduce(0) { $0 + $1.count } + text.count * texts.count)
            return .marked(texts.joined(by: text))
        case "center", "ljust", "rjust", "zfill": return try padded(name, text, arguments)
        case "format": return .marked(text.remade(try JinjaFormat.braces(text.text, arguments)))
        default:
            _ = try arguments.bound(to: [], of: "\(name)()")
            if name.hasPrefix("is") { return .boolean(isAll(name, text.text)) }
            return .marked(text.remade(recased(name, text.text)))
        }
    }

    private static func recased(_ name: String, _ text: String) -> String {
        switch name {
        case "upper": text.uppercased()
        case "lower": text.lowercased()
        case "casefold": text.lowercased().replacingText("ß", with: "ss")
        case "title": text.pythonTitled
        case "swapcase":
            text.unicodeScalars.map {
                $0.properties.isUppercase ? $0.properties.lowercaseMapping : $0.properties.uppercaseMapping
            }.joined()
        default: text.pythonCapitalized
        }
    }

    private static func isAll(_ name: String, _ text: String) -> Bool {
        if name == "isupper" || name == "islower" {
            return text.isCased && text.hasSameScalars(as: name == "islower" ? text.lowercased() : text.uppercased())
        }
        return !text.isEmpty
            && text.unicodeScalars.allSatisfy { scalar in
                let type = scalar.properties.numericType
                switch name {
                case "isdecimal": return type == .decimal
                case "isdigit": return type == .decimal || type == .digit
                case "isnumeric": return type != nil
                case "isspace": return scalar.isPythonSpace
                case "isalpha": return scalar.isLetter
                default: return scalar.isLetter || type != nil
                }
            }
    }

    static func replace(_ text: JinjaText, _ old: String, _ new: JinjaText, limit: Int) throws -> JinjaText {
        try JinjaValue.checkSize(new.count, times: text.text.countOfText(old))
        let limit = limit < 0 ? Int.max : limit
        if old.utf8.isEmpty || limit == 0 || (text.marks.isEmpty && new.marks.isEmpty) {
            return text.remade(text.text.replacingText(old, with: new.text, limit: limit))
        }
        return text.text.ranges(by: old, limit: limit).map { text[$0] }.joined(by: new)
    }

    private static func split(
        _ text: JinjaText, _ arguments: JinjaCallArguments, fromRight: Bool
    ) throws -> JinjaValue {
        let values = try arguments.bound(to: ["sep", "maxsplit"], of: "split()")
        let limit = values[1]?.wholeNumber ?? -1
        let cuts = limit < 0 ? Int.max : limit
        let ranges: [Range<Int>]
        if let separator = try optionalText(values[0], "split") {
            guard !separator.utf8.isEmpty else { throw TemplateError("split() needs a separator that is not empty") }
            ranges = text.text.ranges(by: separator, limit: cuts, fromRight: fromRight)
        } else {
            ranges = text.text.wordRanges(limit: cuts, fromRight: fromRight)
        }
        return .list(ranges.map { .marked(text[$0]) })
    }

    private static func partition(
        _ text: JinjaText, _ arguments: JinjaCallArguments, fromRight: Bool
    ) throws -> JinjaValue {
        let separator = try requiredMarkedText(arguments.bound(to: ["sep"], of: "partition()")[0], "partition")
        guard separator.count > 0 else { throw TemplateError("partition() needs a separator that is not empty") }
        let ranges = text.text.ranges(by: separator.text, limit: 1, fromRight: fromRight)
        let parts =
            ranges.count == 2
            ? [text[ranges[0]], separator, text[ranges[1]]]
            : fromRight ? [JinjaText(), JinjaText(), text] : [text, JinjaText(), JinjaText()]
        return .tuple(parts.map { .marked($0) })
    }

    private static func affix(
        _ name: String, _ text: JinjaText, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        let value = try arguments.bound(to: ["prefix"], of: "\(name)()")[0]
        let isPrefix = name == "startswith" || name == "removeprefix"
        func holds(_ part: String) -> Bool {
            isPrefix
                ? text.text.utf8.starts(with: part.utf8) : text.text.utf8.reversed().starts(with: part.utf8.reversed())
        }
        if name.hasPrefix("remove") {
            let part = try requiredText(value, name)
            guard holds(part) else { return .marked(text) }
            return .marked(text[isPrefix ? part.utf8.count..<text.count : 0..<text.count - part.utf8.count])
        }
        if case .tuple(let parts) = value {
            return .boolean(try parts.map { try requiredText($0, name) }.contains(where: holds))
        }
        return .boolean(holds(try requiredText(value, name)))
    }

    private static func search(_ name: String, _ text: String, _ arguments: JinjaCallArguments) throws -> JinjaValue {
        let values = try arguments.bound(to: ["sub", "start", "end"], of: "\(name)()")
        let part = try requiredText(values[0], name)
        var text = text
        var offset = 0
        if values[1] != nil || values[2] != nil {
            let count = text.unicodeScalars.count
            func place(_ value: JinjaValue?, _ fallback: Int) -> Int {
                guard let number = value?.wholeNumber else { return fallback }
                return max(0, min(count, number < 0 ? number &+ count : number))
            }
            offset = place(values[1], 0)
            let end = max(offset, place(values[2], count))
            text = String(text.unicodeScalars.dropFirst(offset).prefix(end - offset))
        }
        if name == "count" { return .integer(text.countOfText(part)) }
        let found = text.offsetOfText(part, fromRight: name.hasPrefix("r"))
        guard found >= 0 || name.hasSuffix("find") else {
            throw TemplateError("\(name)() does not find \(pythonRepr(part))")
        }
        return .integer(found < 0 ? found : found + offset)
    }

    private static func padded(_ name: String, _ text: JinjaText, _ arguments: JinjaCallArguments) throws -> JinjaValue
    {
        let values = try arguments.bound(to: name == "zfill" ? ["width"] : ["width", "fillchar"], of: "\(name)()")
        guard let width = values[0]?.wholeNumber else { throw TemplateError("\(name)() needs a width") }
        let filler = values.count > 1 ? try optionalText(values[1], name) ?? " " : "0"
        guard filler.unicodeScalars.count == 1 else { throw TemplateError("\(name)() fills with one character") }
        let length = text.text.unicodeScalars.count
        guard width > length else { return .marked(text) }
        try JinjaValue.checkSize(width, times: filler.utf8.count)
        func fill(_ count: Int) -> JinjaText { JinjaText(String(repeating: filler, count: count)) }
        let missing = width - length
        switch name {
        case "ljust": return .marked([text, fill(missing)].joined())
        case "center":
            // Python puts the odd blank to the left where the width is odd.
            let left = missing / 2 + (missing & width & 1)
            return .marked([fill(left), text, fill(missing - left)].joined())
        case "zfill":
            let hasSign = text.text.utf8.first == UInt8(ascii: "-") || text.text.utf8.first == UInt8(ascii: "+")
            let sign = hasSign ? 1 : 0
            return .marked([text[0..<sign], fill(missing), text[sign..<text.count]].joined())
        default: return .marked([fill(missing), text].joined())
        }
    }
}
