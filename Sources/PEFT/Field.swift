import Formats

/// A hyper-parameter: its key in `adapter_config.json`, recipes and `--set`, its place in the value, its meaning.
///
/// The list of a method's fields is all that coding, help, tables and error messages need.
public struct Field<Root>: Sendable {
    /// The key.
    public let name: String
    /// What it means, in one phrase.
    public let summary: String
    /// What values look like, such as `a whole number`.
    public let form: String
    package let read: @Sendable (Root) -> JSON
    /// Returns false when the value has another form.
    package let write: @Sendable (inout Root, JSON) -> Bool

    /// Makes a field of a property.
    public init<Value: FieldValue>(
        _ name: String, _ property: any WritableKeyPath<Root, Value> & Sendable, _ summary: String
    ) {
        self.name = name
        self.summary = summary
        form = Value.form
        read = { $0[keyPath: property].json }
        write = { root, json in
            guard let value = Value(json: json) else { return false }
            root[keyPath: property] = value
            return true
        }
    }
}

extension Field {
    /// The same hyper-parameter of a method that has this one's within it.
    func within<Outer>(_ place: any WritableKeyPath<Outer, Root> & Sendable) -> Field<Outer> {
        Field<Outer>(
            name: name, summary: summary, form: form, read: { read($0[keyPath: place]) },
            write: { write(&$0[keyPath: place], $1) })
    }

    fileprivate init(
        name: String, summary: String, form: String, read: @escaping @Sendable (Root) -> JSON,
        write: @escaping @Sendable (inout Root, JSON) -> Bool
    ) {
        (self.name, self.summary, self.form) = (name, summary, form)
        (self.read, self.write) = (read, write)
    }
}

/// A value that a hyper-parameter can have.
public protocol FieldValue: Sendable {
    /// What values look like, for messages: "expected ...".
    static var form: String { get }
    /// Makes the value, or nil where the JSON has another form.
    init?(json: JSON)
    /// The value in `adapter_config.json`.
    var json: JSON { get }
}

extension Int: FieldValue {
    /// `a whole number`.
    public static var form: String { "a whole number" }
    /// A JSON integer.
    public init?(json: JSON) {
        guard let value = json.int else { return nil }
        self = value
    }
    /// A JSON integer.
    public var json: JSON { JSON(self) }
}

extension Double: FieldValue {
    /// `a number`.
    public static var form: String { "a number" }
    /// A JSON number.
    public init?(json: JSON) {
        guard let value = json.double, value.isFinite else { return nil }
        self = value
    }
    /// A JSON number; a whole one without a fraction, as peft writes the integers that users give.
    public var json: JSON { Int(exactly: self).map { JSON($0) } ?? JSON(self) }
}

extension Bool: FieldValue {
    /// `true or false`.
    public static var form: String { "true or false" }
    /// A JSON truth value.
    public init?(json: JSON) {
        guard let value = json.bool else { return nil }
        self = value
    }
    /// A JSON truth value.
    public var json: JSON { JSON(self) }
}

extension String: FieldValue {
    /// `text`.
    public static var form: String { "text" }
    /// A JSON string that is not empty.
    public init?(json: JSON) {
        guard let value = json.string, !value.isEmpty else { return nil }
        self = value
    }
    /// A JSON string.
    public var json: JSON { JSON(self) }
}

extension Optional: FieldValue where Wrapped: FieldValue {
    /// What the wrapped values look like, or `null`.
    public static var form: String { Wrapped.form + " or null" }
    /// A wrapped value or null.
    public init?(json: JSON) {
        if json.isNull {
            self = nil as Wrapped?
        } else if let value = Wrapped(json: json) {
            self = .some(value)
        } else {
            return nil
        }
    }
    /// The wrapped value or null.
    public var json: JSON { self?.json ?? .null }
}

extension FieldValue where Self: RawRepresentable & CaseIterable, RawValue == String {
    /// The cases.
    public static var form: String { "one of " + allCases.map(\.rawValue).joined(separator: ", ") }
    /// A JSON string naming a case.
    public init?(json: JSON) {
        guard let name = json.string else { return nil }
        self.init(rawValue: name)
    }
    /// The name of the case.
    public var json: JSON { .string(rawValue) }
}

/// Values by regular expressions over module paths, the first match winning (`rank_pattern`, `alpha_pattern`).
public struct Pattern<Value: FieldValue>: FieldValue {
    /// The expressions with their values, in order.
    public var entries: KeyedList<Value>

    /// Makes a pattern.
    public init(_ entries: KeyedList<Value> = [:]) {
        self.entries = entries
    }

    /// An object from regular expressions to the values' form.
    public static var form: String { "an object from regular expressions to \(Value.form)" }

    /// A JSON object; null, as in old files, is an empty one.
    public init?(json: JSON) {
        guard let object = json.isNull ? [:] : json.object else { return nil }
        entries = [:]
        for (key, item) in object {
            guard let value = Value(json: item) else { return nil }
            entries.appendIfNew(key: key, value: value)
        }
    }

    /// A JSON object.
    public var json: JSON {
        var object = KeyedList<JSON>()
        for (key, value) in entries { object.appendIfNew(key: key, value: value.json) }
        return .object(object)
    }

    /// The value for a module, or nil where no expression matches.
    ///
    /// - Throws: `PEFTError` when an expression is not valid.
    public func value(for path: String) throws -> Value? {
        for (key, value) in entries where try PathExpression("(.*\\.)?(\(key))").matches(path) { return value }
        return nil
    }
}

/// A regular expression over a whole module path.
struct PathExpression {
    private let regex: Regex<AnyRegexOutput>

    init(_ pattern: String) throws {
        do {
            regex = try Regex(pattern).matchingSemantics(.unicodeScalar)
        } catch {
            throw PEFTError("\"\(pattern)\" is not a valid regular expression: \(error)")
        }
    }

    func matches(_ path: String) -> Bool { path.wholeMatch(of: regex) != nil }
}
