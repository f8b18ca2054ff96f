/// Reads a part of a mapped file from front to back, little endian, and refuses to read beyond its end.
///
/// The part's file must outlive the cursor.
struct ByteCursor {
    private(set) var position: Int
    private let bytes: UnsafeRawBufferPointer
    private let part: MappedBytes

    init(_ part: MappedBytes) {
        self.part = part
        bytes = part.bytes
        position = 0
    }

    /// Bytes that are left.
    var remaining: Int { bytes.count - position }

    /// The next integer.
    mutating func integer<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type = Value.self) throws -> Value {
        guard remaining >= MemoryLayout<Value>.size else { throw truncated(MemoryLayout<Value>.size) }
        defer { position += MemoryLayout<Value>.size }
        return Value(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: Value.self))
    }

    /// The next 64-bit count of things of which each takes at least `size` bytes of what is left.
    mutating func count(of things: String, size: Int) throws -> Int {
        let start = position
        let value = try integer(UInt64.self)
        guard let count = Int(exactly: value), count <= remaining / size else {
            throw error("\(value) \(things) cannot fit into the \(remaining) bytes that follow", at: start)
        }
        return count
    }

    /// The next bytes.
    mutating func take(_ count: Int) throws -> UnsafeRawBufferPointer {
        guard count >= 0, count <= remaining else { throw truncated(count) }
        defer { position += count }
        return UnsafeRawBufferPointer(rebasing: bytes[position..<(position + count)])
    }

    /// The bytes of the next string: a 64-bit length and that many bytes.
    mutating func string() throws -> UnsafeRawBufferPointer {
        try take(try count(of: "bytes of a string", size: 1))
    }

    /// The next value of a GGUF type that is neither string nor array.
    mutating func scalar(_ type: GGUFValueType) throws -> GGUFValue {
        switch type {
        case .uint8: return .integer(Int64(try integer(UInt8.self)))
        case .int8: return .integer(Int64(try integer(Int8.self)))
        case .uint16: return .integer(Int64(try integer(UInt16.self)))
        case .int16: return .integer(Int64(try integer(Int16.self)))
        case .uint32: return .integer(Int64(try integer(UInt32.self)))
        case .int32: return .integer(Int64(try integer(Int32.self)))
        case .int64: return .integer(try integer(Int64.self))
        case .uint64:
            let value = try integer(UInt64.self)
            return Int64(exactly: value).map { .integer($0) } ?? .unsigned(value)
        case .float32: return .number(Double(Float(bitPattern: try integer(UInt32.self))))
        case .float64: return .number(Double(bitPattern: try integer(UInt64.self)))
        case .bool: return .bool(try integer(UInt8.self) != 0)
        case .string, .array: throw error("expected a number or a Boolean, found type \(type)", at: position)
        }
    }

    /// An error at an offset of this part.
    func error(_ message: String, at offset: Int) -> FormatError {
        FormatError(file: part.file.path, place: .offset(part.offset + offset), message)
    }

    private func truncated(_ count: Int) -> FormatError {
        error("\(count) bytes are needed here, but only \(remaining) are left; the file is truncated", at: position)
    }
}
