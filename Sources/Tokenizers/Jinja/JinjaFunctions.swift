import Foundation

/// The global functions of chat templates, but for `namespace`, which the interpreter keeps.
enum JinjaFunctions {
    static let names: Set<String> = ["dict", "namespace", "raise_exception", "range", "strftime_now"]

    /// A range may not be longer than this, as in Jinja's sandbox.
    private static let rangeLimit = 100_000

    static func call(_ name: String, _ arguments: JinjaCallArguments) throws -> JinjaValue {
        switch name {
        case "range": return try range(arguments)
        case "dict": return try dictionary(arguments)
        case "raise_exception":
            let message = try arguments.bound(to: ["message"], of: "raise_exception()")[0]?.text() ?? ""
            throw TemplateError(message, isRaisedByTemplate: true)
        default:
            let format = try arguments.bound(to: ["format"], of: "strftime_now()")[0]
            return .string(try formattedNow(requiredText(format, "strftime_now")))
        }
    }

    private static func range(_ arguments: JinjaCallArguments) throws -> JinjaValue {
        let bounds = try arguments.positional.map { value in
            guard let number = value.wholeNumber else {
                throw TemplateError("range() takes integers, not \(value.kind)")
            }
            return number
        }
        guard (1...3).contains(bounds.count), arguments.named.isEmpty else {
            throw TemplateError("range() takes one to three integers")
        }
        let (start, stop) = bounds.count == 1 ? (0, bounds[0]) : (bounds[0], bounds[1])
        let step = bounds.count == 3 ? bounds[2] : 1
        guard step != 0 else { throw TemplateError("the step of range() must not be 0") }
        var values: [JinjaValue] = []
        for value in stride(from: start, to: stop, by: step) {
            guard values.count < rangeLimit else { throw TemplateError("range() is longer than \(rangeLimit)") }
            values.append(.integer(value))
        }
        return .list(values)
    }

    private static func dictionary(_ arguments: JinjaCallArguments) throws -> JinjaValue {
        var result = JinjaDictionary()
        guard arguments.positional.count <= 1 else { throw TemplateError("dict() takes at most one dictionary") }
        if let first = arguments.positional.first {
            if case .dictionary(let pairs) = first {
                result = pairs
            } else {
                for pair in first.elements ?? [first] {
                    guard let parts = pair.elements, parts.count == 2 else {
                        throw TemplateError("dict() takes a dictionary, pairs or names, not \(first.kind)")
                    }
                    try result.set(parts[0], parts[1])
                }
            }
        }
        for (name, value) in arguments.named { try result.set(.string(name), value) }
        return .dictionary(result)
    }

    /// The local time in a format of C's `strftime`.
    private static func formattedNow(_ format: String) throws -> String {
        var now = time(nil)
        var parts = tm()
        guard localtime_r(&now, &parts) != nil else { throw TemplateError("the local time is unknown") }
        var buffer = [UInt8](repeating: 0, count: 64 + 32 * format.utf8.count)
        let count = buffer.withUnsafeMutableBytes { bytes in
            bytes.withMemoryRebound(to: CChar.self) { strftime($0.baseAddress, $0.count, format, &parts) }
        }
        return String(decoding: buffer[..<count], as: UTF8.self)
    }
}

/// A number with a fixed count of decimal digits, rounded from its exact value.
func fixed(_ number: Double, digits: Int) -> String {
    String(format: "%.\(digits)f", number)
}
