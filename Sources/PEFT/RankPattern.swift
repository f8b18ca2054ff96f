import Formats

/// Which directions are left of each layer.
public struct RankPattern: FieldValue {
    /// By `<path>.lora_E`, a truth value for each direction.
    public var kept: KeyedList<[Bool]> = [:]

    /// What files have.
    public static var form: String { "an object from <layer>.lora_E to lists of true and false" }

    init() {}

    /// An object of lists.
    public init?(json: JSON) {
        guard let object = json.object else { return nil }
        for (key, value) in object {
            guard let items = value.array else { return nil }
            let flags = items.compactMap(\.bool)
            guard flags.count == items.count else { return nil }
            kept.appendIfNew(key: key, value: flags)
        }
    }

    /// An object of lists.
    public var json: JSON {
        var object = KeyedList<JSON>()
        for (key, flags) in kept { object.appendIfNew(key: key, value: JSON(flags.map { JSON.bool($0) })) }
        return .object(object)
    }

    static func key(_ path: String) -> String { path + ".lora_E" }
}
