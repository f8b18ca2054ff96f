#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

extension JSON {
    /// The text without any space, with non-ASCII characters as they are; NaN and infinities, which JSON lacks, as
    /// `null`.
    public var compact: String {
        var writer = JSONWriter(isPython: false, isASCII: false, indent: nil, sortsKeys: false)
        writer.write(self, depth: 0)
        return writer.text
    }

    /// The text as Python's `json.dumps` writes it, byte for byte (no newline at the end).
    ///
    /// - Parameters:
    ///   - indent: Spaces a level; nil gives one line with `", "` and `": "`.
    ///   - sortKeys: Sorts the keys of every object by code point.
    ///   - ensureASCII: Writes every non-ASCII character as `\uXXXX` (the default in Python).
    ///   - separators: What stands between elements and after keys; nil gives what Python takes for the indent.
    public func pythonText(
        indent: Int? = 2, sortKeys: Bool = false, ensureASCII: Bool = true,
        separators: (item: String, key: String)? = nil
    ) -> String {
        var writer = JSONWriter(isPython: true, isASCII: ensureASCII, indent: indent, sortsKeys: sortKeys)
        if let separators { (writer.itemSeparator, writer.keySeparator) = separators }
        writer.write(self, depth: 0)
        return writer.text
    }
}

/// Python's `repr` of a double: the shortest digits that read back as the same value, with an exponent when the first
/// digit stands more than 16 places before or more than 3 places behind the decimal point.
public func pythonRepr(_ value: Double) -> String {
    if value.isNaN { return "nan" }
    if value.isInfinite { return value < 0 ? "-inf" : "inf" }
    let sign = value.sign == .minus ? "-" : ""
    if value == 0 { return sign + "0.0" }
    let (digits, point) = shortestDigits(value.magnitude)
    if point > 16 || point < -3 {
        let exponent = point - 1
        let fraction = digits.count > 1 ? "." + digits.dropFirst() : ""
        let padding = exponent.magnitude < 10 ? "0" : ""
        return sign + digits.prefix(1) + fraction + (exponent < 0 ? "e-" : "e+") + padding + "\(exponent.magnitude)"
    }
    if point <= 0 { return sign + "0." + String(repeating: "0", count: -point) + digits }
    if point >= digits.count { return sign + digits + String(repeating: "0", count: point - digits.count) + ".0" }
    return sign + digits.prefix(point) + "." + digits.dropFirst(point)
}

/// The shortest digits of a positive value, without zeros at either end, and the number of digits before the point:
/// 0.0125 gives ("125", -1).
private func shortestDigits(_ value: Double) -> (digits: String, point: Int) {
    var digits: [UInt8] = []
    var point: Int?
    var exponent = 0
    var bytes = value.description.utf8[...]
    while let byte = bytes.popFirst() {
        switch byte {
        case UInt8(ascii: "."): point = digits.count
        case UInt8(ascii: "e"):
            exponent = Int(String(decoding: bytes, as: UTF8.self)) ?? 0
            bytes = bytes[bytes.endIndex...]
        default: digits.append(byte)
        }
    }
    let leading = digits.prefix { $0 == UInt8(ascii: "0") }.count
    let position = (point ?? digits.count) + exponent - leading
    digits.removeFirst(leading)
    while digits.last == UInt8(ascii: "0") { digits.removeLast() }
    return (String(decoding: digits, as: UTF8.self), position)
}

private struct JSONWriter {
    let isPython: Bool
    let isASCII: Bool
    let indent: Int?
    let sortsKeys: Bool
    var itemSeparator: String
    var keySeparator: String
    private var bytes: [UInt8] = []

    init(isPython: Bool, isASCII: Bool, indent: Int?, sortsKeys: Bool) {
        self.isPython = isPython
        self.isASCII = isASCII
        self.indent = indent
        self.sortsKeys = sortsKeys
        itemSeparator = isPython && indent == nil ? ", " : ","
        keySeparator = isPython ? ": " : ":"
    }

    var text: String { String(decoding: bytes, as: UTF8.self) }

    mutating func write(_ value: JSON, depth: Int) {
        switch value {
        case .null: append("null")
        case .bool(let value): append(value ? "true" : "false")
        case .integer(let value): append(String(value))
        case .number(let value): write(value)
        case .string(let value): write(value)
        case .array(let elements):
            list("[", elements, "]", depth: depth) { $0.write($1, depth: depth + 1) }
        case .object(let pairs):
            list("{", sortsKeys ? pairs.sortedByKey().entries : pairs.entries, "}", depth: depth) { writer, pair in
                writer.write(pair.key)
                writer.append(writer.keySeparator)
                writer.write(pair.value, depth: depth + 1)
            }
        }
    }

    private mutating func list<Element>(
        _ opening: String, _ elements: [Element], _ closing: String, depth: Int,
        write: (inout JSONWriter, Element) -> Void
    ) {
        append(opening)
        for (position, element) in elements.enumerated() {
            if position > 0 { append(itemSeparator) }
            newLine(depth: depth + 1)
            write(&self, element)
        }
        if !elements.isEmpty { newLine(depth: depth) }
        append(closing)
    }

    private mutating func newLine(depth: Int) {
        guard let indent else { return }
        append("\n")
        bytes.append(contentsOf: repeatElement(UInt8(ascii: " "), count: indent * depth))
    }

    private mutating func write(_ value: Double) {
        if value.isFinite {
            append(pythonRepr(value))
        } else if isPython {
            append(value.isNaN ? "NaN" : value < 0 ? "-Infinity" : "Infinity")
        } else {
            append("null")
        }
    }

    private mutating func write(_ string: String) {
        append("\"")
        for scalar in string.unicodeScalars {
            switch scalar.value {
            case 0x22: append("\\\"")
            case 0x5C: append("\\\\")
            case 0x08: append("\\b")
            case 0x09: append("\\t")
            case 0x0A: append("\\n")
            case 0x0C: append("\\f")
            case 0x0D: append("\\r")
            case 0..<0x20: escape(UInt16(scalar.value))
            case 0x20..<0x7F: bytes.append(UInt8(scalar.value))
            default:
                if isASCII {
                    for unit in UTF16.encode(scalar) ?? UTF16.encodedReplacementCharacter { escape(unit) }
                } else {
                    bytes.append(contentsOf: UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter)
                }
            }
        }
        append("\"")
    }

    private mutating func escape(_ unit: UInt16) {
        let digits = String(unit, radix: 16)
        append("\\u" + String(repeating: "0", count: 4 - digits.utf8.count) + digits)
    }

    private mutating func append(_ text: String) { bytes.append(contentsOf: text.utf8) }
}
