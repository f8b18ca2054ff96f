/// A JSON value that keeps the order of its keys and tells integers from other numbers.
///
/// Strings and keys are compared byte by byte. Equality of objects does not depend on the order of their keys;
/// `1` and `1.0` are different values.
public enum JSON: Sendable {
    /// `null`.
    case null
    /// `true` or `false`.
    case bool(Bool)
    /// A number written without fraction and exponent that fits 64 bits.
    case integer(Int64)
    /// Every other number, correctly rounded.
    case number(Double)
    /// A string.
    case string(String)
    /// An array.
    case array([JSON])
    /// An object with its keys in the order of the text.
    case object(KeyedList<JSON>)
}

extension JSON {
    /// True for `null`.
    public var isNull: Bool {
        if case .null = self { true } else { false }
    }

    /// The value of a Boolean, else nil.
    public var bool: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    /// The value of an integer, else nil (also for `1.0`).
    public var int: Int? {
        if case .integer(let value) = self { Int(exactly: value) } else { nil }
    }

    /// The value of any number, else nil.
    public var double: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }

    /// The value of a string, else nil.
    public var string: String? {
        if case .string(let value) = self { value } else { nil }
    }

    /// The elements of an array, else nil.
    public var array: [JSON]? {
        if case .array(let value) = self { value } else { nil }
    }

    /// The pairs of an object, else nil.
    public var object: KeyedList<JSON>? {
        if case .object(let value) = self { value } else { nil }
    }

    /// The value of a key of an object; nil when it is missing or this is no object.
    ///
    /// Setting makes an object of `null` and does nothing to other kinds.
    public subscript(key: String) -> JSON? {
        get { object?[key] }
        set {
            switch self {
            case .object(var pairs):
                self = .null  // gives up this reference, so that the change below is made in place
                pairs[key] = newValue
                self = .object(pairs)
            case .null:
                var pairs = KeyedList<JSON>()
                pairs[key] = newValue
                self = .object(pairs)
            default: break
            }
        }
    }

    /// The element of an array; nil outside its range or when this is no array.
    public subscript(position: Int) -> JSON? {
        guard let array, array.indices.contains(position) else { return nil }
        return array[position]
    }

    /// The kind in words, for messages: "a string", "an object".
    public var kind: String {
        switch self {
        case .null: "null"
        case .bool: "a Boolean"
        case .integer: "an integer"
        case .number: "a number"
        case .string: "a string"
        case .array: "an array"
        case .object: "an object"
        }
    }
}

extension JSON: Equatable {
    /// Equality with strings by bytes and objects as sets of pairs.
    public static func == (a: JSON, b: JSON) -> Bool {
        switch (a, b) {
        case (.null, .null): true
        case (.bool(let a), .bool(let b)): a == b
        case (.integer(let a), .integer(let b)): a == b
        case (.number(let a), .number(let b)): a == b
        case (.string(let a), .string(let b)): hasSameBytes(a, b)
        case (.array(let a), .array(let b)): a == b
        case (.object(let a), .object(let b)): a == b
        default: false
        }
    }
}

extension JSON: ExpressibleByNilLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
    ExpressibleByFloatLiteral, ExpressibleByStringLiteral, ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
    /// `null`.
    public init(nilLiteral: ()) { self = .null }

    /// A Boolean.
    public init(booleanLiteral value: Bool) { self = .bool(value) }

    /// An integer.
    public init(integerLiteral value: Int64) { self = .integer(value) }

    /// A number.
    public init(floatLiteral value: Double) { self = .number(value) }

    /// A string.
    public init(stringLiteral value: String) { self = .string(value) }

    /// An array.
    public init(arrayLiteral elements: JSON...) { self = .array(elements) }

    /// An object; the last value of a repeated key wins.
    public init(dictionaryLiteral elements: (String, JSON)...) {
        var pairs = KeyedList<JSON>()
        for (key, value) in elements { pairs[key] = value }
        self = .object(pairs)
    }

    /// An integer.
    public init(_ value: Int) { self = .integer(Int64(value)) }

    /// A number.
    public init(_ value: Double) { self = .number(value) }

    /// A string.
    public init(_ value: String) { self = .string(value) }

    /// A Boolean.
    public init(_ value: Bool) { self = .bool(value) }

    /// An array.
    public init(_ values: [JSON]) { self = .array(values) }
}
