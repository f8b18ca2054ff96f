#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

extension JSON {
    /// Deepest nesting that is read; a deeper text is refused, so that no file can exhaust the stack.
    public static let depthLimit = 512

    /// Reads one JSON text (RFC 8259, UTF-8, a byte order mark is skipped).
    ///
    /// As Python does, `NaN`, `Infinity` and `-Infinity` are read as numbers. Refused are repeated keys, escapes of
    /// lone surrogates (no Unicode string can hold them) and numbers that overflow. An integer beyond 64 bits
    /// becomes the nearest `number`.
    ///
    /// - Parameters:
    ///   - bytes: The text.
    ///   - file: Its file, named in errors.
    ///   - firstLine: The number of its first line, for a text that is a part of a file.
    ///   - firstOffset: The offset of its first byte, likewise.
    /// - Throws: ``FormatError`` with line, column and byte offset.
    public static func parse(
        _ bytes: UnsafeRawBufferPointer, file: String? = nil, firstLine: Int = 1, firstOffset: Int = 0
    ) throws -> JSON {
        var parser = JSONParser(bytes: bytes, file: file, firstLine: firstLine, firstOffset: firstOffset)
        return try parser.document()
    }

    /// Reads one JSON text from data; see ``parse(_:file:firstLine:firstOffset:)``.
    public static func parse(_ data: Data, file: String? = nil) throws -> JSON {
        try data.withUnsafeBytes { try parse($0, file: file) }
    }

    /// Reads one JSON text from a string; see ``parse(_:file:firstLine:firstOffset:)``.
    public static func parse(_ text: String, file: String? = nil) throws -> JSON {
        var text = text
        return try text.withUTF8 { try parse(UnsafeRawBufferPointer($0), file: file) }
    }
}

/// A recursive-descent reader over bytes.
private struct JSONParser {
    let bytes: UnsafeRawBufferPointer
    let file: String?
    let firstLine: Int
    let firstOffset: Int
    private var position = 0
    private var scratch: [UInt8] = []

    init(bytes: UnsafeRawBufferPointer, file: String?, firstLine: Int, firstOffset: Int) {
        self.bytes = bytes
        self.file = file
        self.firstLine = firstLine
        self.firstOffset = firstOffset
    }

    mutating func document() throws -> JSON {
        if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { position = 3 }
        let result = try value(depth: 0)
        skipSpace()
        if position < bytes.count { throw error("the text goes on after the end of the JSON value") }
        return result
    }

    private mutating func value(depth: Int) throws -> JSON {
        skipSpace()
        guard let byte = peek() else { throw error("the text ends where a value was expected") }
        switch byte {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case UInt8(ascii: "N"): return try word("NaN", .number(.nan))
        case UInt8(ascii: "I"): return try word("Infinity", .number(.infinity))
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
        default: throw error("expected a value, found \(describe(byte))")
        }
    }

    private mutating func object(depth: Int) throws -> JSON {
        try checkDepth(depth)
        position += 1
        var pairs = KeyedList<JSON>()
        skipSpace()
        if take("}") { return .object(pairs) }
        while true {
            skipSpace()
            let start = position
            guard peek() == UInt8(ascii: "\"") else { throw unexpected("a key in quotation marks") }
            let key = try string()
            skipSpace()
            guard take(":") else { throw unexpected("\":\" after the key \"\(shortened(key))\"") }
            let element = try value(depth: depth + 1)
            guard pairs.appendIfNew(key: key, value: element) else {
                throw error("the key \"\(shortened(key))\" is there twice", at: start)
            }
            skipSpace()
            if take("}") { return .object(pairs) }
            guard take(",") else { throw unexpected("\",\" or \"}\" in an object") }
        }
    }

    private mutating func array(depth: Int) throws -> JSON {
        try checkDepth(depth)
        position += 1
        var elements: [JSON] = []
        skipSpace()
        if take("]") { return .array(elements) }
        while true {
            elements.append(try value(depth: depth + 1))
            skipSpace()
            if take("]") { return .array(elements) }
            guard take(",") else { throw unexpected("\",\" or \"]\" in an array") }
        }
    }

    // MARK: Strings

    private mutating func string() throws -> String {
        let start = position
        position += 1
        let first = position
        while position < bytes.count {
            let byte = bytes[position]
            if byte == UInt8(ascii: "\"") {
                let result = try text(UnsafeRawBufferPointer(rebasing: bytes[first..<position]), from: start)
                position += 1
                return result
            }
            if byte == UInt8(ascii: "\\") { return try escapedString(from: start) }
            if byte < 0x20 { throw error("a string holds the unescaped control character \(describe(byte))") }
            position += 1
        }
        throw error("the text ends inside the string that begins here", at: start)
    }

    /// Goes on with a string at its first escape.
    private mutating func escapedString(from start: Int) throws -> String {
        scratch.removeAll(keepingCapacity: true)
        scratch.append(contentsOf: bytes[(start + 1)..<position])
        while position < bytes.count {
            let byte = bytes[position]
            if byte == UInt8(ascii: "\"") {
                position += 1
                return try scratch.withUnsafeBytes { try text($0, from: start) }
            }
            if byte < 0x20 { throw error("a string holds the unescaped control character \(describe(byte))") }
            position += 1
            if byte == UInt8(ascii: "\\") { try escape() } else { scratch.append(byte) }
        }
        throw error("the text ends inside the string that begins here", at: start)
    }

    private func text(_ utf8: UnsafeRawBufferPointer, from start: Int) throws -> String {
        guard let result = String(validating: utf8, as: UTF8.self) else {
            throw error("the string that begins here is not valid UTF-8", at: start)
        }
        return result
    }

    /// Decodes what follows a backslash.
    private mutating func escape() throws {
        let start = position - 1
        guard let byte = peek() else { throw error("the text ends inside a string") }
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): scratch.append(byte)
        case UInt8(ascii: "b"): scratch.append(0x08)
        case UInt8(ascii: "f"): scratch.append(0x0C)
        case UInt8(ascii: "n"): scratch.append(0x0A)
        case UInt8(ascii: "r"): scratch.append(0x0D)
        case UInt8(ascii: "t"): scratch.append(0x09)
        case UInt8(ascii: "u"):
            guard let scalar = Unicode.Scalar(try escapedScalar(from: start)) else {
                throw error("the escape stands for a lone surrogate, which is no character", at: start)
            }
            scratch.append(contentsOf: UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter)
        default: throw error("\\ is followed by \(describe(byte)), which is no escape", at: start)
        }
    }

    /// The code point of `\uXXXX`, or of a pair of them; a lone surrogate comes back as it is.
    private mutating func escapedScalar(from start: Int) throws -> UInt32 {
        let first = try hexDigits(from: start)
        guard (0xD800..<0xDC00).contains(first), position + 1 < bytes.count,
            bytes[position] == UInt8(ascii: "\\"), bytes[position + 1] == UInt8(ascii: "u")
        else { return first }
        let pairStart = position
        position += 2
        let second = try hexDigits(from: pairStart)
        guard (0xDC00..<0xE000).contains(second) else { return first }
        return 0x10000 + (first - 0xD800) << 10 + (second - 0xDC00)
    }

    private mutating func hexDigits(from start: Int) throws -> UInt32 {
        var result: UInt32 = 0
        for _ in 0..<4 {
            guard let byte = peek(), let digit = Character(Unicode.Scalar(byte)).hexDigitValue, byte < 0x80 else {
                throw error("\\u must be followed by four hexadecimal digits", at: start)
            }
            result = result << 4 | UInt32(digit)
            position += 1
        }
        return result
    }

    // MARK: Numbers

    private mutating func number() throws -> JSON {
        let start = position
        let isNegative = take("-")
        if isNegative, peek() == UInt8(ascii: "I") { return try word("Infinity", .number(-.infinity)) }
        var decimal = Decimal64()
        let integerStart = position
        digits { decimal.append($0) }
        let integerDigits = position - integerStart
        guard integerDigits > 0 else { throw unexpected("a digit") }
        if integerDigits > 1, bytes[integerStart] == UInt8(ascii: "0") {
            throw error("a number may not begin with a needless 0", at: integerStart)
        }
        var isInteger = true
        if take(".") {
            isInteger = false
            let fractionStart = position
            digits {
                decimal.append($0)
                decimal.exponent -= 1
            }
            if position == fractionStart { throw unexpected("a digit after the decimal point") }
        }
        if peek() == UInt8(ascii: "e") || peek() == UInt8(ascii: "E") {
            isInteger = false
            position += 1
            decimal.exponent += try exponent()
        }
        if isInteger, let value = decimal.integer(isNegative: isNegative) { return .integer(value) }
        if let value = decimal.exactDouble { return .number(isNegative ? -value : value) }
        let text = String(decoding: bytes[start..<position], as: UTF8.self)
        guard let value = Double(text), value.isFinite else {
            throw error("the number \(shortened(text)) is beyond the range of a double", at: start)
        }
        return .number(value)
    }

    private mutating func exponent() throws -> Int {
        let isNegative = take("-")
        if !isNegative { _ = take("+") }
        let start = position
        var result = 0
        digits { if result < 100_000 { result = result * 10 + $0 } }
        if position == start { throw unexpected("a digit in the exponent") }
        return isNegative ? -result : result
    }

    private mutating func digits(_ body: (Int) -> Void) {
        while position < bytes.count {
            let digit = bytes[position] &- UInt8(ascii: "0")
            guard digit < 10 else { return }
            body(Int(digit))
            position += 1
        }
    }

    // MARK: Pieces

    private mutating func word(_ word: StaticString, _ value: JSON) throws -> JSON {
        let end = position + word.utf8CodeUnitCount
        let expected = UnsafeBufferPointer(start: word.utf8Start, count: word.utf8CodeUnitCount)
        guard end <= bytes.count, bytes[position..<end].elementsEqual(expected) else {
            throw error("expected a value, found a word that is none (did you forget quotation marks?)")
        }
        position = end
        return value
    }

    private func peek() -> UInt8? { position < bytes.count ? bytes[position] : nil }

    private mutating func take(_ scalar: Unicode.Scalar) -> Bool {
        guard peek() == UInt8(truncatingIfNeeded: scalar.value) else { return false }
        position += 1
        return true
    }

    private mutating func skipSpace() {
        while position < bytes.count {
            switch bytes[position] {
            case 0x20, 0x0A, 0x0D, 0x09: position += 1
            default: return
            }
        }
    }

    // MARK: Errors

    private func checkDepth(_ depth: Int) throws {
        if depth >= JSON.depthLimit { throw error("the value is nested deeper than \(JSON.depthLimit) levels") }
    }

    private func unexpected(_ expectation: String) -> FormatError {
        guard let byte = peek() else { return error("the text ends where \(expectation) was expected") }
        return error("expected \(expectation), found \(describe(byte))")
    }

    private func describe(_ byte: UInt8) -> String {
        guard (0x21..<0x7F).contains(byte) else { return "the byte 0x" + String(byte, radix: 16) }
        return "\"\(Character(Unicode.Scalar(byte)))\""
    }

    private func error(_ message: String, at offset: Int? = nil) -> FormatError {
        let offset = offset ?? position
        var line = firstLine
        var column = 1
        for byte in bytes[..<offset] {
            if byte == 0x0A {
                line += 1
                column = 1
            } else if byte & 0xC0 != 0x80 {
                column += 1
            }
        }
        return FormatError(
            file: file, place: .line(line, column: column, offset: firstOffset + offset), message)
    }
}

/// Up to 19 decimal digits and a power of ten, collected while a number is read.
private struct Decimal64 {
    private var digits: UInt64 = 0
    private var isExact = true
    var exponent = 0

    mutating func append(_ digit: Int) {
        let (product, didOverflow) = digits.multipliedReportingOverflow(by: 10)
        let (sum, didOverflowAgain) = product.addingReportingOverflow(UInt64(digit))
        isExact = isExact && !didOverflow && !didOverflowAgain
        if isExact { digits = sum }
    }

    func integer(isNegative: Bool) -> Int64? {
        guard isExact else { return nil }
        if isNegative { return digits <= 1 << 63 ? Int64(truncatingIfNeeded: 0 &- digits) : nil }
        return Int64(exactly: digits)
    }

    /// The value, when both the digits and the power of ten are exact doubles, so that one operation rounds correctly.
    var exactDouble: Double? {
        guard isExact, digits <= 1 << 53, abs(exponent) <= 22 else { return nil }
        let power = powersOfTen[abs(exponent)]
        return exponent < 0 ? Double(digits) / power : Double(digits) * power
    }
}

private let powersOfTen: [Double] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
]
