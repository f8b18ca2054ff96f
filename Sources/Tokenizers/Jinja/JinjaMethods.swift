/// The methods of strings, lists and dictionaries that templates may call.
enum JinjaMethods {
    static let list: Set<String> = ["index", "count", "copy"]
    static let dictionary: Set<String> = ["items", "keys", "values", "get", "copy"]
    /// What Python's dictionaries have besides, which the sandbox does not let templates call.
    static let changing: Set<String> = ["clear", "pop", "popitem", "setdefault", "update"]

    static func call(
        _ name: String, of receiver: JinjaValue, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        switch receiver {
        case .string(let text, let marks):
            return try JinjaStringMethods.call(name, of: JinjaText(text, marks: marks), arguments)
        case .dictionary(let pairs): return try call(name, of: pairs, arguments)
        case .list(let values), .tuple(let values):
            if name == "copy" { return receiver }
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
        _ name: String, of pairs: JinjaDictionary, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        switch name {
        case "get":
            let values = try arguments.bound(to: ["key", "default"], of: "get()")
            guard let key = values[0] else { throw TemplateError("get() needs a key") }
            guard JinjaDictionary.isKey(key) else { throw TemplateError("\(key.kind) cannot be a key of a dictionary") }
            return pairs[key] ?? values[1] ?? .none
        case "keys": return .list(pairs.keys)
        case "values": return .list(pairs.values)
        case "copy": return .dictionary(pairs)
        default: return items(of: pairs)
        }
    }

    static func items(of pairs: JinjaDictionary) -> JinjaValue {
        .list(pairs.entries.map { .tuple([$0.key, $0.value]) })
    }
}
