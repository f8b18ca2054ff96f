import Formats

/// A dictionary of a template: keeps its order, and finds keys that Python takes for equal (`1`, `1.0` and `True`).
struct JinjaDictionary: Sendable {
    struct Pair: Sendable {
        let key: JinjaValue
        var value: JinjaValue
    }

    /// By a spelling of the key that is the same for equal keys.
    private var pairs = KeyedList<Pair>()

    init() {}

    /// A dictionary with names as keys; the first of equal names stays.
    init(names: some Sequence<(key: String, value: JinjaValue)>) {
        for (key, value) in names {
            pairs.appendIfNew(key: Self.spelling(key), value: Pair(key: .string(key), value: value))
        }
    }

    var entries: [Pair] { pairs.values }
    var keys: [JinjaValue] { pairs.values.map(\.key) }
    var values: [JinjaValue] { pairs.values.map(\.value) }
    var count: Int { pairs.count }
    var isEmpty: Bool { pairs.isEmpty }

    /// The value of a name.
    subscript(name: String) -> JinjaValue? { pairs[Self.spelling(name)]?.value }

    /// The value of a key; nil also for what cannot be a key.
    subscript(key: JinjaValue) -> JinjaValue? { Self.spelling(key).flatMap { pairs[$0]?.value } }

    /// Whether a value can be a key: no list, no dictionary.
    static func isKey(_ key: JinjaValue) -> Bool { spelling(key) != nil || key.isUndefined }

    /// Sets the value of a key; an equal key that is there stays.
    mutating func set(_ key: JinjaValue, _ value: JinjaValue) throws {
        guard let spelling = Self.spelling(key) else {
            throw TemplateError("\(key.kind) cannot be a key of a dictionary")
        }
        if let place = pairs.position(of: spelling) {
            pairs[spelling] = Pair(key: pairs[place].value.key, value: value)
        } else {
            pairs.appendIfNew(key: spelling, value: Pair(key: key, value: value))
        }
    }

    /// The dictionary with other keys, equal to the old ones, and other values.
    func mapped(_ transform: (Pair) -> (JinjaValue, JinjaValue)) -> JinjaDictionary {
        var result = self
        result.pairs = KeyedList()
        for pair in pairs {
            let (key, value) = transform(pair.value)
            result.pairs.appendIfNew(key: pair.key, value: Pair(key: key, value: value))
        }
        return result
    }

    private static func spelling(_ name: String) -> String { "s" + name }

    private static func spelling(_ key: JinjaValue) -> String? {
        switch key {
        case .string(let text, _): return spelling(text)
        case .none: return "n"
        case .tuple(let values):
            var result = "t"
            for value in values {
                guard let part = spelling(value) else { return nil }
                result += "\(part.utf8.count):" + part
            }
            return result
        case .boolean, .integer: return key.wholeNumber.map { "i\($0)" }
        case .float(let number): return Int(exactly: number).map { "i\($0)" } ?? "f\(number)"
        default: return nil
        }
    }
}
