/// A value of a GGUF file's metadata.
public enum GGUFValue: Sendable {
    /// Any integer type that fits (all but huge 64-bit unsigned ones).
    case integer(Int64)
    /// A 64-bit unsigned integer beyond `Int64`.
    case unsigned(UInt64)
    /// A 32- or 64-bit float.
    case number(Double)
    /// A Boolean.
    case bool(Bool)
    /// A string.
    case string(String)
    /// An array, decoded when it is asked for.
    case array(GGUFArray)

    /// The value of an integer, else nil.
    public var int: Int? {
        if case .integer(let value) = self { Int(exactly: value) } else { nil }
    }

    /// The value of any number, else nil.
    public var double: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .unsigned(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }

    /// The value of a Boolean, else nil.
    public var bool: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    /// The value of a string, else nil.
    public var string: String? {
        if case .string(let value) = self { value } else { nil }
    }

    /// The array, else nil.
    public var array: GGUFArray? {
        if case .array(let value) = self { value } else { nil }
    }
}

/// The types of metadata values, with the format's codes.
public enum GGUFValueType: UInt32, Sendable {
    /// Scalars and containers in the order of their codes.
    case uint8, int8, uint16, int16, uint32, int32, float32, bool, string, array, uint64, int64, float64

    /// Bytes of a value; nil for strings and arrays.
    var size: Int? {
        switch self {
        case .uint8, .int8, .bool: 1
        case .uint16, .int16: 2
        case .uint32, .int32, .float32: 4
        case .uint64, .int64, .float64: 8
        case .string, .array: nil
        }
    }
}

/// An array of a GGUF file's metadata, still in the file.
public struct GGUFArray: Sendable {
    /// The type of all elements.
    public let elementType: GGUFValueType
    /// Number of elements.
    public let count: Int
    /// The key, for messages.
    let key: String
    /// The encoded elements; that they are all there was checked when the file was opened.
    let bytes: MappedBytes

    /// The strings.
    ///
    /// - Throws: ``FormatError`` when this is no array of strings, or one is not valid UTF-8.
    public func strings() throws -> [String] {
        try expect([.string], "strings")
        var result: [String] = []
        result.reserveCapacity(count)
        try forEachString { utf8 in
            guard let string = String(validating: utf8, as: UTF8.self) else {
                throw FormatError(
                    file: bytes.file.path, place: .key(key), "element \(result.count) is not valid UTF-8")
            }
            result.append(string)
        }
        return result
    }

    /// The integers, of whatever width.
    ///
    /// - Throws: ``FormatError`` when this is no array of integers, or one does not fit `Int`.
    public func ints() throws -> [Int] {
        try expect([.uint8, .int8, .uint16, .int16, .uint32, .int32, .uint64, .int64], "integers")
        return try elements { value in
            guard let int = value.int else {
                throw FormatError(file: bytes.file.path, place: .key(key), "an element is beyond 64 bits")
            }
            return int
        }
    }

    /// The numbers.
    ///
    /// - Throws: ``FormatError`` when this is an array of something else.
    public func doubles() throws -> [Double] {
        try expect(
            [.uint8, .int8, .uint16, .int16, .uint32, .int32, .uint64, .int64, .float32, .float64], "numbers")
        return try elements { $0.double ?? .nan }
    }

    /// The Booleans.
    ///
    /// - Throws: ``FormatError`` when this is an array of something else.
    public func bools() throws -> [Bool] {
        try expect([.bool], "Booleans")
        return try elements { $0.bool ?? false }
    }

    /// Calls `body` with the bytes of each string.
    private func forEachString(_ body: (UnsafeRawBufferPointer) throws -> Void) throws {
        try withExtendedLifetime(bytes.file) {
            var cursor = ByteCursor(bytes)
            for _ in 0..<count { try body(try cursor.string()) }
        }
    }

    private func elements<Element>(_ convert: (GGUFValue) throws -> Element) throws -> [Element] {
        try withExtendedLifetime(bytes.file) {
            var cursor = ByteCursor(bytes)
            var result: [Element] = []
            result.reserveCapacity(count)
            for _ in 0..<count { result.append(try convert(try cursor.scalar(elementType))) }
            return result
        }
    }

    private func expect(_ types: [GGUFValueType], _ words: String) throws {
        if types.contains(elementType) { return }
        throw FormatError(
            file: bytes.file.path, place: .key(key),
            "expected an array of \(words), found one of type \(elementType)")
    }
}
