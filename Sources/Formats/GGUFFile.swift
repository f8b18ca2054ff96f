/// A tensor of a GGUF file.
public struct GGUFTensor: Sendable {
    /// Its name, for example `blk.0.attn_q.weight`.
    public let name: String
    /// How its elements are stored.
    public let type: BlockType
    /// Its shape in row-major order: the last size is the one of neighbouring elements.
    public let shape: [Int]
    /// Its bytes in the mapped file.
    public let bytes: MappedBytes

    /// Number of elements.
    public var elementCount: Int { product(of: shape) ?? 0 }

    /// The way to its plain numbers: the last size are the columns, all others the rows.
    ///
    /// A vector counts as one row, or, to be read in another order, as rows of one element.
    ///
    /// - Throws: ``FormatError`` when the order does not fit.
    public func dequantiser(order: RowOrder = .stored) throws -> Dequantiser {
        let isReorderedVector = order != .stored && shape.count == 1
        let columns = isReorderedVector ? 1 : shape.last ?? 1
        let rows = columns == 0 ? 0 : elementCount / columns
        return try Dequantiser(type: type, rows: rows, columns: columns, bytes: bytes, order: order)
    }
}

/// A GGUF file (versions 2 and 3), mapped into memory: metadata and tensors.
///
/// Every size and offset is checked when the file is opened; nothing is copied before it is asked for.
public struct GGUFFile: Sendable {
    /// The mapping.
    public let file: MappedFile
    /// The version of the format.
    public let version: Int
    /// All keys with their values, in the file's order.
    public let metadata: KeyedList<GGUFValue>
    /// All tensors by name, in the file's order.
    public let tensors: KeyedList<GGUFTensor>
    /// What tensor offsets are multiples of.
    public let alignment: Int
    /// Where the tensors' data begins.
    public let dataOffset: Int

    /// Opens a file.
    ///
    /// - Throws: ``FormatError`` when it is missing, truncated, not GGUF, one part of a split file, or holds tensors of
    ///   a type that cannot be read.
    public init(path: String) throws {
        file = try MappedFile(path: path)
        var reader = GGUFReader(file: file, cursor: ByteCursor(try file.slice(offset: 0, count: file.count)))
        let header = try reader.header()
        version = header.version
        metadata = try reader.metadata(count: header.keys)
        if let parts = metadata["split.count"]?.int, parts > 1 {
            throw FormatError(file: path, "this is one of \(parts) parts of a model; join them into one file first")
        }
        let infos = try reader.tensorInfos(count: header.tensors)
        alignment = try reader.alignment(metadata)
        dataOffset = try reader.dataOffset(alignment: alignment)
        tensors = try reader.tensors(infos, alignment: alignment, dataOffset: dataOffset)
    }

    /// The value of a metadata key that must be there.
    ///
    /// - Throws: ``FormatError`` naming the key.
    public func value(_ key: String) throws -> GGUFValue {
        guard let value = metadata[key] else {
            throw FormatError(file: file.path, place: .key(key), "the file lacks this metadata key")
        }
        return value
    }

    /// A tensor that must be there.
    ///
    /// - Throws: ``FormatError`` naming it.
    public func tensor(_ name: String) throws -> GGUFTensor {
        guard let tensor = tensors[name] else {
            throw FormatError(file: file.path, place: .key(name), "the file lacks this tensor")
        }
        return tensor
    }
}

private struct GGUFReader {
    let file: MappedFile
    var cursor: ByteCursor

    struct TensorInfo {
        let name: String
        let type: BlockType
        let shape: [Int]
        let offset: UInt64
    }

    mutating func header() throws -> (version: Int, tensors: Int, keys: Int) {
        guard try cursor.integer(UInt32.self) == 0x4655_4747 else {
            throw FormatError(file: file.path, "this is not a GGUF file: it does not begin with \"GGUF\"")
        }
        let version = try cursor.integer(UInt32.self)
        guard version == 2 || version == 3 else {
            let isBigEndian = version.byteSwapped == 2 || version.byteSwapped == 3
            let found = isBigEndian ? "a big-endian file" : "version \(version)"
            throw FormatError(file: file.path, "expected a little-endian GGUF file of version 2 or 3, found \(found)")
        }
        // The smallest tensor entry: an empty name, no sizes, type, offset; the smallest pair: an empty key, a byte.
        let tensors = try cursor.count(of: "tensors", size: 24)
        let keys = try cursor.count(of: "metadata keys", size: 13)
        return (Int(version), tensors, keys)
    }

    mutating func metadata(count: Int) throws -> KeyedList<GGUFValue> {
        var result = KeyedList<GGUFValue>()
        for _ in 0..<count {
            let start = cursor.position
            let key = try text("a metadata key")
            let value = try value(of: key)
            if !result.appendIfNew(key: key, value: value) {
                throw cursor.error("the metadata key \"\(shortened(key))\" is there twice", at: start)
            }
        }
        return result
    }

    private mutating func value(of key: String) throws -> GGUFValue {
        switch try valueType(of: key) {
        case .string: return .string(try text("the value of \"\(shortened(key))\""))
        case .array: return .array(try array(of: key))
        case let type: return try cursor.scalar(type)
        }
    }

    private mutating func valueType(of key: String) throws -> GGUFValueType {
        let start = cursor.position
        let code = try cursor.integer(UInt32.self)
        guard let type = GGUFValueType(rawValue: code) else {
            throw cursor.error("the value of \"\(shortened(key))\" has the unknown type \(code)", at: start)
        }
        return type
    }

    /// Walks over an array, so that it can be decoded later without further checks of its size.
    private mutating func array(of key: String) throws -> GGUFArray {
        let type = try valueType(of: key)
        let start: Int
        let count: Int
        if let size = type.size {
            count = try cursor.count(of: "array elements", size: size)
            start = cursor.position
            _ = try cursor.take(count * size)
        } else if type == .string {
            count = try cursor.count(of: "strings", size: 8)
            start = cursor.position
            for _ in 0..<count { _ = try cursor.string() }
        } else {
            throw cursor.error(
                "\"\(shortened(key))\" is an array of arrays, which no reader supports", at: cursor.position)
        }
        let bytes = try file.slice(offset: start, count: cursor.position - start)
        return GGUFArray(elementType: type, count: count, key: key, bytes: bytes)
    }

    mutating func tensorInfos(count: Int) throws -> [TensorInfo] {
        var result: [TensorInfo] = []
        result.reserveCapacity(count)
        for _ in 0..<count { result.append(try tensorInfo()) }
        return result
    }

    private mutating func tensorInfo() throws -> TensorInfo {
        let name = try text("a tensor's name")
        let rankStart = cursor.position
        let rank = try cursor.integer(UInt32.self)
        guard rank <= 4 else {
            throw cursor.error(
                "the tensor \"\(shortened(name))\" has \(rank) dimensions; at most 4 exist", at: rankStart)
        }
        var shape: [Int] = []
        for _ in 0..<rank {
            let start = cursor.position
            let size = try cursor.integer(UInt64.self)
            guard let size = Int(exactly: size) else {
                throw cursor.error("the tensor \"\(shortened(name))\" has a dimension of \(size)", at: start)
            }
            shape.insert(size, at: 0)
        }
        let typeStart = cursor.position
        let code = try cursor.integer(UInt32.self)
        guard let type = BlockType(rawValue: code) else {
            throw cursor.error(
                "the tensor \"\(shortened(name))\" is stored as type \(code) (\(BlockType.name(ofCode: code))), "
                    + "which cannot be read; use a file of another quantisation",
                at: typeStart)
        }
        return TensorInfo(name: name, type: type, shape: shape, offset: try cursor.integer(UInt64.self))
    }

    func alignment(_ metadata: KeyedList<GGUFValue>) throws -> Int {
        guard let value = metadata["general.alignment"] else { return 32 }
        guard let alignment = value.int, alignment > 0, alignment & (alignment - 1) == 0, alignment <= 1 << 30 else {
            throw FormatError(
                file: file.path, place: .key("general.alignment"), "expected a power of two, found \(value)")
        }
        return alignment
    }

    func dataOffset(alignment: Int) throws -> Int {
        (cursor.position + alignment - 1) / alignment * alignment
    }

    func tensors(_ infos: [TensorInfo], alignment: Int, dataOffset: Int) throws -> KeyedList<GGUFTensor> {
        var result = KeyedList<GGUFTensor>()
        for info in infos {
            let tensor = GGUFTensor(
                name: info.name, type: info.type, shape: info.shape,
                bytes: try bytes(of: info, alignment: alignment, dataOffset: dataOffset))
            if !result.appendIfNew(key: info.name, value: tensor) {
                throw FormatError(file: file.path, place: .key(info.name), "this tensor is there twice")
            }
        }
        return result
    }

    private func bytes(of info: TensorInfo, alignment: Int, dataOffset: Int) throws -> MappedBytes {
        func error(_ message: String) -> FormatError {
            FormatError(file: file.path, place: .key(info.name), message)
        }
        let what = "\(info.type.name) tensor of shape \(info.shape)"
        guard (info.shape.last ?? 1) % info.type.elementsPerBlock == 0 else {
            throw error("a \(what) has rows that are no whole number of blocks of \(info.type.elementsPerBlock)")
        }
        // Elements are counted too, so that no product of sizes can overflow later, whatever the width of an element.
        guard let elements = product(of: info.shape), elements <= Int.max / 8,
            let rowBytes = info.type.bytes(ofRow: info.shape.last ?? 1),
            let size = product(of: [rowBytes] + info.shape.dropLast())
        else { throw error("a \(what) is larger than any file") }
        guard let offset = Int(exactly: info.offset), offset % alignment == 0 else {
            throw error("its offset \(info.offset) is no multiple of the alignment \(alignment)")
        }
        let room = file.count - dataOffset
        guard size == 0 || (room >= size && offset <= room - size) else {
            throw error(
                "a \(what) takes \(size) bytes at offset \(offset) of the data, which has \(max(0, room)) bytes; "
                    + "the file is truncated")
        }
        return try file.slice(offset: size == 0 ? 0 : dataOffset + offset, count: size)
    }

    private mutating func text(_ what: String) throws -> String {
        let start = cursor.position
        guard let text = String(validating: try cursor.string(), as: UTF8.self) else {
            throw cursor.error("\(what) is not valid UTF-8", at: start)
        }
        return text
    }
}

/// The product of sizes, or nil when it overflows.
///
/// A size of 0 makes it 0, but the others must not overflow either: strides are products of those, also in a tensor
/// without elements.
func product(of sizes: [Int]) -> Int? {
    var result = 1
    for size in sizes where size != 0 {
        let (product, didOverflow) = result.multipliedReportingOverflow(by: size)
        if didOverflow { return nil }
        result = product
    }
    return sizes.contains(0) ? 0 : result
}
