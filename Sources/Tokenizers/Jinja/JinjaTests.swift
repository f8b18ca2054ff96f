import Formats

/// The tests of `value is test`.
enum JinjaTests {
    /// The names of the tests, and how many arguments each takes.
    private static let arguments: [String: Int] = [
        "defined": 0, "undefined": 0, "none": 0, "string": 0, "mapping": 0, "iterable": 0, "sequence": 0, "number": 0,
        "integer": 0, "float": 0, "boolean": 0, "true": 0, "false": 0, "callable": 0, "odd": 0, "even": 0,
        "lower": 0, "upper": 0, "divisibleby": 1, "equalto": 1, "eq": 1, "==": 1, "ne": 1, "!=": 1, "lt": 1, "<": 1,
        "lessthan": 1, "le": 1, "<=": 1, "gt": 1, ">": 1, "greaterthan": 1, "ge": 1, ">=": 1, "in": 1, "sameas": 1,
        "filter": 0, "test": 0,
    ]

    /// Throws when there is no such test.
    static func check(_ name: String, line: Int?) throws {
        guard arguments[name] == nil else { return }
        throw TemplateError(
            line: line, "there is no test \"\(name)\" here.\(suggestion(for: name, in: arguments.keys.sorted()))")
    }

    /// Whether `value is name(arguments)`.
    static func apply(_ name: String, _ value: JinjaValue, _ given: [JinjaValue]) throws -> Bool {
        guard given.count == arguments[name] else {
            throw TemplateError("the test \"\(name)\" takes \(arguments[name] ?? 0) arguments, not \(given.count)")
        }
        return try given.isEmpty ? kind(name, value) : relation(name, value, given[0])
    }

    private static func kind(_ name: String, _ value: JinjaValue) throws -> Bool {
        switch (name, value) {
        case ("defined", _): return !value.isUndefined
        case ("undefined", .undefined), ("none", .none), ("string", .string), ("mapping", .dictionary),
            ("integer", .integer), ("float", .float), ("boolean", .boolean), ("true", .boolean(true)),
            ("false", .boolean(false)), ("callable", .function), ("callable", .macro), ("callable", .method):
            return true
        case ("iterable", _): return value.elements != nil
        case ("sequence", _): return value.count != nil
        case ("number", _): return value.number != nil
        case ("odd", _), ("even", _):
            guard let number = value.wholeNumber else { throw TemplateError("\(value.kind) is neither odd nor even") }
            return (number % 2 != 0) == (name == "odd")
        case ("lower", _), ("upper", _):
            let text = try value.text()
            return text.isCased && text.hasSameScalars(as: name == "lower" ? text.lowercased() : text.uppercased())
        case ("filter", .string(let name, _)): return JinjaFilters.exists(name)
        case ("test", .string(let name, _)): return arguments[name] != nil
        default: return false
        }
    }

    private static func relation(_ name: String, _ value: JinjaValue, _ other: JinjaValue) throws -> Bool {
        switch name {
        case "equalto", "eq", "==": return value.isEqual(to: other)
        case "ne", "!=": return !value.isEqual(to: other)
        case "lt", "<", "lessthan": return try value.precedes(other)
        case "gt", ">", "greaterthan": return try other.precedes(value)
        case "le", "<=": return try value.isEqual(to: other) || value.precedes(other)
        case "ge", ">=": return try value.isEqual(to: other) || other.precedes(value)
        case "in": return try other.contains(value)
        case "sameas":
            return value.kind == other.kind && value.isEqual(to: other)
        default:  // divisibleby
            guard let a = value.wholeNumber, let b = other.wholeNumber, b != 0 else {
                throw TemplateError("divisibleby works on integers other than 0")
            }
            return b == -1 || a % b == 0
        }
    }
}
