import Formats

/// A value of a template, with Python's meaning.
indirect enum JinjaValue: Sendable {
    /// What a missing name, attribute or item gives; the payload says which.
    case undefined(String)
    case none
    case boolean(Bool)
    case integer(Int)
    case float(Double)
    /// A string, and which parts of it came from which message.
    case string(String, marks: [JinjaMark] = [])
    case list([JinjaValue])
    case tuple([JinjaValue])
    case dictionary(JinjaDictionary)
    /// A namespace: its number in the interpreter, since its attributes can change.
    case namespace(Int)
    /// The variable `loop` of a for loop.
    case loop(JinjaLoop)
    /// A global function.
    case function(String)
    /// A macro: its number in the interpreter.
    case macro(Int)
    /// A method with the value it belongs to.
    case method(JinjaValue, String)

    /// A value from JSON.
    init(_ json: JSON) {
        switch json {
        case .null: self = .none
        case .bool(let value): self = .boolean(value)
        case .integer(let value): self = .integer(Int(value))
        case .number(let value): self = .float(value)
        case .string(let value): self = .string(value)
        case .array(let values): self = .list(values.map { JinjaValue($0) })
        case .object(let pairs):
            self = .dictionary(JinjaDictionary(names: pairs.lazy.map { ($0.key, JinjaValue($0.value)) }))
        }
    }

    /// The value as JSON; throws for what JSON cannot hold.
    func json() throws -> JSON {
        switch self {
        case .none: return .null
        case .boolean(let value): return .bool(value)
        case .integer(let value): return .integer(Int64(value))
        case .float(let value): return .number(value)
        case .string(let value, _): return .string(value)
        case .list(let values), .tuple(let values): return .array(try values.map { try $0.json() })
        case .dictionary(let pairs):
            var result = KeyedList<JSON>()
            for pair in pairs.entries { result.appendIfNew(key: try pair.key.jsonKey(), value: try pair.value.json()) }
            return .object(result)
        case .undefined, .namespace, .loop, .function, .macro, .method:
            throw TemplateError("\(kind) cannot be written as JSON")
        }
    }

    /// The text that JSON has for the key of a dictionary.
    private func jsonKey() throws -> String {
        switch self {
        case .string(let text, _): return text
        case .none: return "null"
        case .boolean(let value): return value ? "true" : "false"
        case .integer, .float: return try text()
        default: throw TemplateError("\(kind) cannot be a key in JSON")
        }
    }

    /// The kind in words, for messages.
    var kind: String {
        switch self {
        case .undefined: "an undefined value"
        case .none: "none"
        case .boolean: "a Boolean"
        case .integer: "an integer"
        case .float: "a float"
        case .string: "a string"
        case .list: "a list"
        case .tuple: "a tuple"
        case .dictionary: "a dictionary"
        case .namespace: "a namespace"
        case .loop: "the loop variable"
        case .function, .macro, .method: "a function"
        }
    }

    var isUndefined: Bool {
        if case .undefined = self { true } else { false }
    }

    /// Python's `bool()`.
    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .boolean(let value): value
        case .integer(let value): value != 0
        case .float(let value): value != 0
        case .string(let value, _): !value.utf8.isEmpty
        case .list(let values), .tuple(let values): !values.isEmpty
        case .dictionary(let pairs): !pairs.isEmpty
        case .namespace, .loop, .function, .macro, .method: true
        }
    }

    var isNone: Bool {
        if case .none = self { true } else { false }
    }

    var isBoolean: Bool {
        if case .boolean = self { true } else { false }
    }

    /// Number of elements, or nil for what has none.
    var count: Int? {
        switch self {
        case .undefined: 0
        case .string(let value, _): value.unicodeScalars.count
        case .list(let values), .tuple(let values): values.count
        case .dictionary(let pairs): pairs.count
        default: nil
        }
    }

    /// What a for loop runs over, or nil for what cannot be iterated.
    var elements: [JinjaValue]? {
        switch self {
        case .undefined: []
        case .string(let value, let marks):
            if marks.isEmpty { value.unicodeScalars.map { .string(String($0)) } } else { characters(value, marks) }
        case .list(let values), .tuple(let values): values
        case .dictionary(let pairs): pairs.keys
        default: nil
        }
    }

    private func characters(_ text: String, _ marks: [JinjaMark]) -> [JinjaValue] {
        let text = JinjaText(text, marks: marks)
        var offset = 0
        return text.text.unicodeScalars.map { scalar in
            let end = offset + UTF8.width(scalar)
            defer { offset = end }
            return .marked(JinjaText(String(scalar), marks: text.marks(in: offset..<end)))
        }
    }

    /// The number as a float: integers, floats and Booleans.
    var number: Double? {
        switch self {
        case .boolean(let value): value ? 1 : 0
        case .integer(let value): Double(value)
        case .float(let value): value
        default: nil
        }
    }

    /// The number as an integer: integers and Booleans.
    var wholeNumber: Int? {
        switch self {
        case .boolean(let value): value ? 1 : 0
        case .integer(let value): value
        default: nil
        }
    }
}

// MARK: - Text

extension JinjaValue {
    /// Python's `str()`: what the value prints as.
    func text() throws -> String {
        switch self {
        case .undefined: ""
        case .string(let value, _): value
        default: try representation()
        }
    }

    /// Python's `repr()`.
    private func representation() throws -> String {
        switch self {
        case .undefined: return "Undefined"
        case .none: return "None"
        case .boolean(let value): return value ? "True" : "False"
        case .integer(let value): return String(value)
        case .float(let value): return pythonRepr(value)
        case .string(let value, _): return pythonRepr(value)
        case .list(let values): return "[" + (try Self.joined(values)) + "]"
        case .tuple(let values):
            return "(" + (try Self.joined(values)) + (values.count == 1 ? ",)" : ")")
        case .dictionary(let pairs):
            return "{"
                + (try pairs.entries.map { "\(try $0.key.representation()): \(try $0.value.representation())" })
                .joined(separator: ", ") + "}"
        case .namespace, .loop, .function, .macro, .method:
            throw TemplateError("\(kind) cannot be printed")
        }
    }

    private static func joined(_ values: [JinjaValue]) throws -> String {
        try values.map { try $0.representation() }.joined(separator: ", ")
    }
}

// MARK: - Comparison

extension JinjaValue {
    /// Python's `==`.
    func isEqual(to other: JinjaValue) -> Bool {
        switch (self, other) {
        case (.undefined, .undefined), (.none, .none): return true
        case (.string(let a, _), .string(let b, _)): return a.hasSameScalars(as: b)
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
            return a.count == b.count && zip(a, b).allSatisfy { $0.isEqual(to: $1) }
        case (.dictionary(let a), .dictionary(let b)):
            return a.count == b.count && a.entries.allSatisfy { b[$0.key]?.isEqual(to: $0.value) ?? false }
        case (.namespace(let a), .namespace(let b)), (.macro(let a), .macro(let b)): return a == b
        default:
            if let a = wholeNumber, let b = other.wholeNumber { return a == b }
            guard let a = number, let b = other.number else { return false }
            return a == b
        }
    }

    /// Python's `<`; throws for values without an order.
    func precedes(_ other: JinjaValue) throws -> Bool {
        switch (self, other) {
        case (.string(let a, _), .string(let b, _)): return a.precedesByScalars(b)
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
            for (x, y) in zip(a, b) where !x.isEqual(to: y) { return try x.precedes(y) }
            return a.count < b.count
        default:
            if let a = wholeNumber, let b = other.wholeNumber { return a < b }
            guard let a = number, let b = other.number else {
                throw TemplateError("\(kind) and \(other.kind) have no order")
            }
            return a < b
        }
    }

    /// Python's `element in self`.
    func contains(_ element: JinjaValue) throws -> Bool {
        switch self {
        case .string(let text, _):
            guard case .string(let part, _) = element else {
                throw TemplateError("\"in\" looks for a string in a string, not for \(element.kind)")
            }
            return text.containsText(part)
        case .dictionary(let pairs): return pairs[element] != nil
        default:
            guard let elements else { throw TemplateError("\"in\" cannot look into \(kind)") }
            return elements.contains { $0.isEqual(to: element) }
        }
    }
}

/// The state of a for loop that its body can ask for.
struct JinjaLoop: Sendable {
    let items: [JinjaValue]
    let index0: Int
    /// How many calls of a recursive loop this one lies in.
    var depth0 = 0
    /// The number of this run of a loop in the interpreter.
    var run = 0
    /// The number of the loop's body in the interpreter, for a recursive one.
    var body: Int?

    /// An attribute of `loop`, or nil when there is no such one.
    func attribute(_ name: String) -> JinjaValue? {
        switch name {
        case "index": .integer(index0 + 1)
        case "index0": .integer(index0)
        case "revindex": .integer(items.count - index0)
        case "revindex0": .integer(items.count - index0 - 1)
        case "first": .boolean(index0 == 0)
        case "last": .boolean(index0 == items.count - 1)
        case "length": .integer(items.count)
        case "depth": .integer(depth0 + 1)
        case "depth0": .integer(depth0)
        case "previtem": index0 > 0 ? items[index0 - 1] : .undefined("there is no previous item")
        case "nextitem": index0 + 1 < items.count ? items[index0 + 1] : .undefined("there is no next item")
        case "cycle", "changed": .method(.loop(self), name)
        default: nil
        }
    }
}
