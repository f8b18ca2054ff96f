import Formats

/// The arguments of a call, evaluated.
struct JinjaCallArguments {
    var positional: [JinjaValue] = []
    var named: [(name: String, value: JinjaValue)] = []

    /// The arguments in the order of `parameters`, nil where one is not given.
    func bound(to parameters: [String], of function: String) throws -> [JinjaValue?] {
        guard positional.count <= parameters.count else {
            throw TemplateError("\(function) takes at most \(parameters.count) arguments, not \(positional.count)")
        }
        var values: [JinjaValue?] = positional
        values += Array(repeating: nil, count: parameters.count - positional.count)
        for (name, value) in named {
            guard let place = parameters.firstIndex(of: name) else {
                throw TemplateError("\(function) has no argument \"\(name)\"; it has \(parameters)")
            }
            guard values[place] == nil else { throw TemplateError("\(function) got the argument \"\(name)\" twice") }
            values[place] = value
        }
        return values
    }
}

/// The methods of strings, lists and dictionaries that templates may call.
enum JinjaMethods {
    static let string: Set<String> = [
        "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper", "lower",
        "title",
        "capitalize", "replace", "find", "count", "join", "isdigit",
    ]
    static let list: Set<String> = ["index", "count"]
    static let dictionary: Set<String> = ["items", "keys", "values", "get"]

    static func call(
        _ name: String, of receiver: JinjaValue, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        switch receiver {
        case .string(let text): return try call(name, of: text, arguments)
        case .dictionary(let pairs): return try call(name, of: pairs, arguments)
        case .list(let values), .tuple(let values):
            guard let value = try arguments.bound(to: ["value"], of: name)[0] else {
                throw TemplateError("\(name)() needs a value")
            }
            if name == "count" { return .integer(values.count { $0.isEqual(to: value) }) }
            guard let place = values.firstIndex(where: { $0.isEqual(to: value) }) else {
                throw TemplateError("index() does not find its value in the list")
            }
            return .integer(place)
        case .loop(let loop):  // cycle
            guard !arguments.positional.isEmpty else { throw TemplateError("loop.cycle() needs values") }
            return arguments.positional[loop.index0 % arguments.positional.count]
        default: throw TemplateError("\(receiver.kind) has no method \"\(name)\"")
        }
    }

    private static func call(
        _ name: String, of pairs: KeyedList<JinjaValue>, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        switch name {
        case "get":
            let values = try arguments.bound(to: ["key", "default"], of: "get()")
            guard let key = values[0] else { throw TemplateError("get() needs a key") }
            guard case .string(let text) = key else { return values[1] ?? .none }
            return pairs[text] ?? values[1] ?? .none
        case "keys": return .list(pairs.keys.map { .string($0) })
        case "values": return .list(pairs.values)
        default: return items(of: pairs)
        }
    }

    static func items(of pairs: KeyedList<JinjaValue>) -> JinjaValue {
        .list(pairs.map { .tuple([.string($0.key), $0.value]) })
    }

    private static func call(
        _ name: String, of text: String, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        switch name {
        case "strip", "lstrip", "rstrip":
            let characters = try optionalText(arguments.bound(to: ["chars"], of: name)[0], name)
            return .string(text.stripped(characters, left: name != "rstrip", right: name != "lstrip"))
        case "split", "rsplit": return try split(text, arguments, fromRight: name == "rsplit")
        case "splitlines": return .list(text.splitPythonLines().map { .string($0) })
        case "startswith", "endswith":
            let parts = try affixes(arguments.bound(to: ["prefix"], of: name)[0], name)
            return .boolean(
                parts.contains {
                    name == "startswith"
                        ? text.utf8.starts(with: $0.utf8) : text.utf8.reversed().starts(with: $0.utf8.reversed())
                })
        case "upper": return .string(text.uppercased())
        case "lower": return .string(text.lowercased())
        case "title": return .string(text.pythonTitled)
        case "capitalize": return .string(text.pythonCapitalized)
        case "replace":
            let values = try arguments.bound(to: ["old", "new", "count"], of: "replace()")
            let limit = values[2]?.wholeNumber ?? -1
            return .string(
                try replace(text, requiredText(values[0], name), requiredText(values[1], name), limit: limit))
        case "find", "count":
            let part = try requiredText(arguments.bound(to: ["sub"], of: name)[0], name)
            return .integer(name == "find" ? text.offsetOfText(part) : text.countOfText(part))
        case "join":
            let values = try arguments.bound(to: ["iterable"], of: "join()")
            guard let parts = values[0]?.elements else { throw TemplateError("join() needs a list") }
            return .string(try parts.map { try requiredText($0, "join") }.joined(separator: text))
        default:  // isdigit
            return .boolean(
                !text.isEmpty
                    && text.unicodeScalars.allSatisfy {
                        $0.properties.numericType == .decimal || $0.properties.numericType == .digit
                    })
        }
    }

    static func replace(_ text: String, _ old: String, _ new: String, limit: Int) throws -> String {
        try JinjaValue.checkSize(new.utf8.count, times: text.countOfText(old))
        return text.replacingText(old, with: new, limit: limit < 0 ? .max : limit)
    }

    private static func split(
        _ text: String, _ arguments: JinjaCallArguments, fromRight: Bool
    ) throws -> JinjaValue {
        let values = try arguments.bound(to: ["sep", "maxsplit"], of: "split()")
        let limit = values[1]?.wholeNumber ?? -1
        let separator = try optionalText(values[0], "split")
        guard let separator else {
            guard !fromRight || limit < 0 else {
                throw TemplateError("rsplit() with a limit and without a separator is not supported")
            }
            return .list(text.splitByWhitespace(limit: limit < 0 ? .max : limit).map { .string($0) })
        }
        guard !separator.utf8.isEmpty else { throw TemplateError("split() needs a separator that is not empty") }
        guard fromRight, limit >= 0 else {
            return .list(text.split(by: separator, limit: limit < 0 ? .max : limit).map { .string($0) })
        }
        // The cuts from the right are the cuts of the mirrored text.
        func mirrored(_ text: String) -> String { String(text.unicodeScalars.reversed()) }
        let pieces = mirrored(text).split(by: mirrored(separator), limit: limit)
        return .list(pieces.reversed().map { .string(mirrored($0)) })
    }

    private static func affixes(_ value: JinjaValue?, _ function: String) throws -> [String] {
        if case .tuple(let parts) = value { return try parts.map { try requiredText($0, function) } }
        return [try requiredText(value, function)]
    }

    static func requiredText(_ value: JinjaValue?, _ function: String) throws -> String {
        guard case .string(let text) = value else {
            throw TemplateError("\(function) needs a string, not \(value?.kind ?? "nothing")")
        }
        return text
    }

    static func optionalText(_ value: JinjaValue?, _ function: String) throws -> String? {
        guard let value else { return nil }
        if case .none = value { return nil }
        return try requiredText(value, function)
    }
}
