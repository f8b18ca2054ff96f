import Foundation

/// Arithmetic, indexing and slicing of template values.
extension JinjaValue {
    /// Strings and lists that a template makes may not become longer than this.
    static let sizeLimit = 1 << 24

    /// Applies an arithmetic operator.
    func applying(_ symbol: String, _ other: JinjaValue) throws -> JinjaValue {
        switch (self, symbol, other) {
        case (.string(let a, let marks), "+", .string(let b, let others)):
            try Self.checkSize(a.utf8.count + b.utf8.count)
            guard !marks.isEmpty || !others.isEmpty else { return .string(a + b) }
            return .marked([JinjaText(a, marks: marks), JinjaText(b, marks: others)].joined())
        case (.list(let a), "+", .list(let b)):
            try Self.checkSize(a.count + b.count)
            return .list(a + b)
        case (.tuple(let a), "+", .tuple(let b)):
            try Self.checkSize(a.count + b.count)
            return .tuple(a + b)
        case (.string(let a, let marks), "*", _) where other.wholeNumber != nil,
            (_, "*", .string(let a, let marks)) where wholeNumber != nil:
            let times = max(0, other.wholeNumber ?? wholeNumber ?? 0)
            try Self.checkSize(a.utf8.count, times: times)
            return .marked(
                JinjaText(a, marks: marks).remade(String(repeating: a, count: a.utf8.isEmpty ? 0 : times)))
        case (.string(let a, let marks), "%", _):
            let text = try JinjaFormat.percent(a, other)
            try Self.checkSize(text.utf8.count)
            var all = marks
            other.collectMarks(&all)
            return .string(text, marks: JinjaText.marks(covering: text.utf8.count, from: all))
        case (.list(let a), "*", _) where other.wholeNumber != nil:
            let times = max(0, other.wholeNumber ?? 0)
            try Self.checkSize(a.count, times: times)
            return .list(a.isEmpty ? [] : Array(repeatElement(a, count: times).joined()))
        default: break
        }
        if symbol != "/", let a = wholeNumber, let b = other.wholeNumber {
            if let result = try Self.integers(a, symbol, b) { return result }
        }
        guard let a = number, let b = other.number else {
            throw TemplateError("\"\(symbol)\" does not work on \(described) and \(other.described)")
        }
        return .float(try Self.floats(a, symbol, b))
    }

    private var described: String {
        if case .undefined(let reason) = self { return "\(kind) (\(reason))" }
        return kind
    }

    /// Values may lie this deep in each other.
    private static let depthLimit = 256

    /// Number of values in this one, itself included; throws when they lie too deep for recursive functions.
    func checkedSize(depth: Int = 0) throws -> Int {
        guard depth <= Self.depthLimit else {
            throw TemplateError("values lie more than \(Self.depthLimit) levels deep")
        }
        switch self {
        case .list(let values), .tuple(let values):
            return try values.reduce(1) { try $0 + $1.checkedSize(depth: depth + 1) }
        case .dictionary(let pairs):
            return try pairs.values.reduce(1) { try $0 + $1.checkedSize(depth: depth + 1) }
        case .loop(let loop): return try loop.items.reduce(1) { try $0 + $1.checkedSize(depth: depth + 1) }
        case .method(let receiver, _): return try 1 + receiver.checkedSize(depth: depth + 1)
        case .string(let text, _): return 1 + (text.utf8.count >> 6)
        default: return 1
        }
    }

    static func checkSize(_ size: Int, times: Int = 1) throws {
        let (product, overflows) = size.multipliedReportingOverflow(by: times)
        guard !overflows, product <= sizeLimit else {
            throw TemplateError("a value would be larger than \(sizeLimit) elements or bytes")
        }
    }

    /// The result for integers, or nil for a negative power, which is a float.
    private static func integers(_ a: Int, _ symbol: String, _ b: Int) throws -> JinjaValue? {
        let result: (partialValue: Int, overflow: Bool)
        switch symbol {
        case "+": result = a.addingReportingOverflow(b)
        case "-": result = a.subtractingReportingOverflow(b)
        case "*": result = a.multipliedReportingOverflow(by: b)
        case "//", "%":
            guard b != 0 else { throw TemplateError("division by zero") }
            let quotient = a.dividedReportingOverflow(by: b)
            let remainder = a.remainderReportingOverflow(dividingBy: b)
            // Python rounds towards minus infinity; the remainder has the sign of the divisor.
            let isBelow = remainder.partialValue != 0 && (remainder.partialValue < 0) != (b < 0)
            if symbol == "//" {
                result = (quotient.partialValue - (isBelow ? 1 : 0), quotient.overflow)
            } else {
                result = (remainder.partialValue + (isBelow ? b : 0), false)
            }
        default:
            guard b >= 0 else { return nil }
            result = power(a, b)
        }
        guard !result.overflow else { throw TemplateError("the integer result of \"\(symbol)\" is too large") }
        return .integer(result.partialValue)
    }

    private static func power(_ base: Int, _ exponent: Int) -> (partialValue: Int, overflow: Bool) {
        var result = 1
        if base == 0 || base == 1 || base == -1 {
            return (exponent == 0 ? 1 : base == -1 && exponent % 2 == 0 ? 1 : base, false)
        }
        for _ in 0..<min(exponent, 64) {
            let product = result.multipliedReportingOverflow(by: base)
            guard !product.overflow else { return product }
            result = product.partialValue
        }
        return (result, exponent > 64)
    }

    private static func floats(_ a: Double, _ symbol: String, _ b: Double) throws -> Double {
        if ["/", "//", "%"].contains(symbol), b == 0 { throw TemplateError("division by zero") }
        switch symbol {
        case "+": return a + b
        case "-": return a - b
        case "*": return a * b
        case "/": return a / b
        case "//": return (a / b).rounded(.down)
        case "%":
            let remainder = a.truncatingRemainder(dividingBy: b)
            return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder
        default: return pow(a, b)
        }
    }

    // MARK: Items

    /// `self[index]`; what is missing is undefined.
    func item(_ index: JinjaValue) throws -> JinjaValue {
        switch self {
        case .undefined(let reason): throw TemplateError(reason)
        case .dictionary(let pairs):
            if let value = pairs[index] { return value }
            if case .string(let name, _) = index { return attribute(name) }
            return .undefined("the dictionary has no such key")
        case .list(let values), .tuple(let values):
            if let position = index.wholeNumber {
                let place = position < 0 ? position &+ values.count : position
                guard values.indices.contains(place) else {
                    return .undefined("\(kind) of \(values.count) has no element \(position)")
                }
                return values[place]
            }
        case .string(let text, let marks):
            if let position = index.wholeNumber {
                let scalars = Array(text.unicodeScalars)
                let place = position < 0 ? position &+ scalars.count : position
                guard scalars.indices.contains(place) else {
                    return .undefined("a string of \(scalars.count) has no character \(position)")
                }
                guard !marks.isEmpty else { return .string(String(scalars[place])) }
                return .marked(JinjaText(text, marks: marks)[Self.bytes(of: place..<place + 1, in: scalars)])
            }
        default: break
        }
        if case .string(let name, _) = index { return attribute(name) }
        return .undefined("\(kind) has no element \(index.kind)")
    }

    /// `self.name` for everything but namespaces, whose attributes the interpreter keeps.
    func attribute(_ name: String) -> JinjaValue {
        switch self {
        case .dictionary(let pairs):
            if JinjaMethods.dictionary.contains(name) { return .method(self, name) }
            if JinjaMethods.changing.contains(name) {
                return .undefined("a template may not call \"\(name)\", which changes a dictionary,")
            }
            if let value = pairs[name] { return value }
        case .string where JinjaStringMethods.names.contains(name): return .method(self, name)
        case .list where JinjaMethods.list.contains(name), .tuple where JinjaMethods.list.contains(name):
            return .method(self, name)
        case .loop(let loop):
            if let value = loop.attribute(name) { return value }
        default: break
        }
        return .undefined("\(kind) has no attribute \"\(name)\"")
    }

    /// `self[start:stop:step]`.
    func slice(_ start: JinjaValue?, _ stop: JinjaValue?, _ step: JinjaValue?) throws -> JinjaValue {
        switch self {
        case .list(let values): return .list(try Self.slice(values, start, stop, step))
        case .tuple(let values): return .tuple(try Self.slice(values, start, stop, step))
        case .string(let text, let marks):
            let scalars = Array(text.unicodeScalars)
            let places = try Self.slice(Array(scalars.indices), start, stop, step)
            if let first = places.first, let last = places.last, last - first == places.count - 1 {
                return .marked(JinjaText(text, marks: marks)[Self.bytes(of: first..<last + 1, in: scalars)])
            }
            return .marked(JinjaText(text, marks: marks).remade(String(places.map { scalars[$0] })))
        case .undefined(let reason): throw TemplateError(reason)
        default: throw TemplateError("\(kind) cannot be sliced")
        }
    }

    /// The bytes of a range of characters.
    private static func bytes(of range: Range<Int>, in scalars: [Unicode.Scalar]) -> Range<Int> {
        let start = scalars[..<range.lowerBound].reduce(0) { $0 + UTF8.width($1) }
        return start..<scalars[range].reduce(start) { $0 + UTF8.width($1) }
    }

    private static func slice<Element>(
        _ values: [Element], _ start: JinjaValue?, _ stop: JinjaValue?, _ step: JinjaValue?
    ) throws -> [Element] {
        let step = try bound(step) ?? 1
        guard step != 0 else { throw TemplateError("the step of a slice must not be 0") }
        let count = values.count
        // Going backwards, the places run from count - 1 down to 0, and "before the first" is -1.
        let lowest = step < 0 ? -1 : 0
        let highest = step < 0 ? count - 1 : count
        func place(_ bound: Int?, default fallback: Int) -> Int {
            guard let bound else { return fallback }
            return max(lowest, min(highest, bound < 0 ? bound &+ count : bound))
        }
        let first = place(try bound(start), default: step < 0 ? highest : lowest)
        let last = place(try bound(stop), default: step < 0 ? lowest : highest)
        return stride(from: first, to: last, by: max(-count - 1, min(count + 1, step))).map { values[$0] }
    }

    private static func bound(_ value: JinjaValue?) throws -> Int? {
        guard let value else { return nil }
        if case .none = value { return nil }
        guard let number = value.wholeNumber else { throw TemplateError("\(value.kind) cannot bound a slice") }
        return number
    }
}
