/// A tensor in a mapped safetensors file.
public struct SafetensorsTensor: Sendable {
    /// Its name.
    public let name: String
    /// Element type.
    public let type: SafetensorsType
    /// Sizes, row-major; empty for a scalar.
    public let shape: [Int]
    /// Its bytes, little endian, in the mapped file.
    ///
    /// They need not be aligned to the element's size.
    public let bytes: MappedBytes

    /// Number of elements.
    public var elementCount: Int { product(of: shape) ?? 0 }
}

/// One safetensors file, mapped into memory.
///
/// All rules of the format are checked when it is opened: sizes, offsets, no hole and no overlap, no repeated name.
public struct SafetensorsFile: Sendable {
    /// The mapping.
    public let file: MappedFile
    /// The texts under `__metadata__`.
    public let metadata: KeyedList<String>
    /// All tensors by name, in the order of their data.
    public let tensors: KeyedList<SafetensorsTensor>

    /// The format's limit on the header, in bytes.
    public static let headerLimit = 100_000_000

    /// Opens a file.
    ///
    /// - Throws: ``FormatError`` when it is missing, truncated or breaks a rule of the format.
    public init(path: String) throws {
        file = try MappedFile(path: path)
        let reader = try SafetensorsReader(file: file)
        metadata = try reader.metadata()
        tensors = try reader.tensors()
    }

    /// A tensor that must be there.
    ///
    /// - Throws: ``FormatError`` naming it.
    public func tensor(_ name: String) throws -> SafetensorsTensor {
        guard let tensor = tensors[name] else {
            throw FormatError(file: file.path, place: .key(name), "the file lacks this tensor")
        }
        return tensor
    }
}

/// The header's key that is no tensor.
let safetensorsMetadataKey = "__metadata__"

private struct SafetensorsReader {
    let file: MappedFile
    let header: KeyedList<JSON>
    let dataOffset: Int

    init(file: MappedFile) throws {
        self.file = file
        guard file.count >= 8 else {
            throw FormatError(file: file.path, "this is not a safetensors file: it has only \(file.count) bytes")
        }
        let size = try file.integer(at: 0, as: UInt64.self)
        guard size <= UInt64(SafetensorsFile.headerLimit) else {
            throw FormatError(
                file: file.path,
                "this is not a safetensors file: its header would have \(size) bytes, the limit is "
                    + "\(SafetensorsFile.headerLimit)")
        }
        let text = try file.slice(offset: 8, count: Int(size))
        dataOffset = 8 + Int(size)
        guard text.bytes.first == UInt8(ascii: "{") else {
            throw FormatError(
                file: file.path, place: .offset(8), "this is not a safetensors file: its header does not begin with {")
        }
        let json = try withExtendedLifetime(file) { try JSON.parse(text.bytes, file: file.path, firstOffset: 8) }
        guard let object = json.object else {
            throw FormatError(file: file.path, place: .offset(8), "expected an object as header, found \(json.kind)")
        }
        header = object
    }

    func metadata() throws -> KeyedList<String> {
        var result = KeyedList<String>()
        guard let json = header[safetensorsMetadataKey], !json.isNull else { return result }
        guard let pairs = json.object else {
            throw error(safetensorsMetadataKey, "expected an object, found \(json.kind)")
        }
        for (key, value) in pairs.entries {
            guard let text = value.string else {
                throw error(safetensorsMetadataKey, "the value of \"\(shortened(key))\" is \(value.kind), not a string")
            }
            result.appendIfNew(key: key, value: text)
        }
        return result
    }

    func tensors() throws -> KeyedList<SafetensorsTensor> {
        var entries: [(name: String, info: SafetensorsInfo, range: Range<Int>)] = []
        entries.reserveCapacity(header.count)
        for (name, json) in header.entries where !hasSameBytes(name, safetensorsMetadataKey) {
            let info = try info(name, json)
            entries.append((name, info, try range(name, json, info)))
        }
        // An empty tensor may share its offset with the one that follows.
        entries.sort { ($0.range.lowerBound, $0.range.upperBound) < ($1.range.lowerBound, $1.range.upperBound) }
        var result = KeyedList<SafetensorsTensor>()
        var end = 0
        for entry in entries {
            guard entry.range.lowerBound == end else {
                let what = entry.range.lowerBound < end ? "overlaps the tensor before it" : "leaves a hole before it"
                throw error(
                    entry.name, "its data begins at \(entry.range.lowerBound) and \(what), which ends at \(end)")
            }
            end = entry.range.upperBound
            let tensor = SafetensorsTensor(
                name: entry.name, type: entry.info.type, shape: entry.info.shape,
                bytes: try bytes(entry.name, entry.range))
            result.appendIfNew(key: entry.name, value: tensor)
        }
        guard end == file.count - dataOffset else {
            throw FormatError(
                file: file.path, place: .offset(dataOffset + end),
                "the tensors end here, but \(file.count - dataOffset - end) bytes follow")
        }
        return result
    }

    private func info(_ name: String, _ json: JSON) throws -> SafetensorsInfo {
        guard let code = json["dtype"]?.string else { throw error(name, "the entry lacks its \"dtype\"") }
        guard let type = SafetensorsType(rawValue: code) else {
            throw error(name, "the dtype \"\(shortened(code))\" is unknown")
        }
        guard let sizes = json["shape"]?.array else { throw error(name, "the entry lacks its \"shape\"") }
        let shape = sizes.compactMap(\.int)
        guard shape.count == sizes.count, shape.allSatisfy({ $0 >= 0 }) else {
            throw error(name, "the shape holds something that is no size")
        }
        return SafetensorsInfo(type: type, shape: shape)
    }

    private func range(_ name: String, _ json: JSON, _ info: SafetensorsInfo) throws -> Range<Int> {
        guard let offsets = json["data_offsets"]?.array, offsets.count == 2, let begin = offsets[0].int,
            let end = offsets[1].int, 0 <= begin, begin <= end
        else { throw error(name, "\"data_offsets\" must be two increasing numbers") }
        guard let size = info.type.bytes(ofShape: info.shape) else {
            throw error(name, "a tensor of shape \(info.shape) and dtype \(info.type.rawValue) has no size in bytes")
        }
        guard end - begin == size else {
            throw error(
                name,
                "shape \(info.shape) of dtype \(info.type.rawValue) takes \(size) bytes, but data_offsets give "
                    + "\(end - begin)")
        }
        return begin..<end
    }

    private func bytes(_ name: String, _ range: Range<Int>) throws -> MappedBytes {
        guard range.upperBound <= file.count - dataOffset else {
            throw error(
                name,
                "its data ends at \(range.upperBound), but the file holds \(file.count - dataOffset) bytes of data; "
                    + "it is truncated")
        }
        return try file.slice(offset: dataOffset + range.lowerBound, count: range.count)
    }

    private func error(_ name: String, _ message: String) -> FormatError {
        FormatError(file: file.path, place: .key(name), message)
    }
}
