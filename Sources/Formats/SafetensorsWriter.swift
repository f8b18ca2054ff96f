/// Writes one safetensors file, byte for byte as the reference implementation does.
///
/// The header is written first, from names, types and shapes; the tensors follow one by one in any order, so that
/// never more than one needs to be in memory. The file appears when ``finish()`` has found it complete.
public final class SafetensorsWriter {
    /// Where the file will be.
    public let path: String
    /// Names in the order of the data: by type descending, then by name.
    public let order: [String]

    private let file: AtomicFile
    private var places: KeyedList<Place>

    private struct Place {
        let offset: Int
        let count: Int
        var written = 0
    }

    /// Begins a file.
    ///
    /// - Parameters:
    ///   - path: Where the file will be.
    ///   - tensors: All tensors that will follow.
    ///   - metadata: Texts under `__metadata__`; left out when there are none.
    /// - Throws: ``FormatError`` when a shape has no size, or the file cannot be written.
    public init(path: String, tensors: KeyedList<SafetensorsInfo>, metadata: KeyedList<String> = [:]) throws {
        self.path = path
        let sorted = tensors.entries.sorted { a, b in
            a.value.type == b.value.type
                ? precedesInBytes(a.key, b.key) : a.value.type.rank > b.value.type.rank
        }
        var header = KeyedList<JSON>()
        if !metadata.isEmpty {
            var texts = KeyedList<JSON>()
            for (key, value) in metadata.entries { texts.appendIfNew(key: key, value: .string(value)) }
            header.appendIfNew(key: safetensorsMetadataKey, value: .object(texts))
        }
        var places = KeyedList<Place>()
        var end = 0
        for (name, info) in sorted {
            guard let count = info.type.bytes(ofShape: info.shape), count <= Int.max / 2 - end else {
                throw FormatError(
                    file: path, place: .key(name),
                    "a tensor of shape \(info.shape) and dtype \(info.type.rawValue) cannot be written")
            }
            let isNew = header.appendIfNew(
                key: name,
                value: [
                    "dtype": JSON(info.type.rawValue), "shape": JSON(info.shape.map { JSON($0) }),
                    "data_offsets": [JSON(end), JSON(end + count)],
                ])
            guard isNew, !hasSameBytes(name, safetensorsMetadataKey) else {
                throw FormatError(file: path, place: .key(name), "no tensor may have this name")
            }
            places.appendIfNew(key: name, value: Place(offset: end, count: count))
            end += count
        }
        order = sorted.map(\.key)
        let text = Array(JSON.object(header).compact.utf8)
        let padded = text + [UInt8](repeating: UInt8(ascii: " "), count: (8 - text.count % 8) % 8)
        guard padded.count <= SafetensorsFile.headerLimit else {
            throw FormatError(file: path, "the header would have \(padded.count) bytes, more than the format allows")
        }
        file = try AtomicFile(path: path)
        let dataOffset = 8 + padded.count
        self.places = KeyedList()
        for (name, place) in places.entries {
            self.places.appendIfNew(key: name, value: Place(offset: dataOffset + place.offset, count: place.count))
        }
        try withUnsafeBytes(of: UInt64(padded.count).littleEndian) { try file.write($0) }
        try padded.withUnsafeBytes { try file.write($0) }
    }

    /// Writes a tensor's bytes (little endian, row-major), or the next piece of them.
    ///
    /// - Throws: ``FormatError`` when the header does not name the tensor, when there are too many bytes, or when the
    ///   disk refuses them; then nothing is left behind.
    public func write(_ name: String, _ bytes: UnsafeRawBufferPointer) throws {
        guard var place = places[name] else {
            throw FormatError(file: path, place: .key(name), "the header does not name this tensor")
        }
        guard bytes.count <= place.count - place.written else {
            throw FormatError(
                file: path, place: .key(name),
                "the tensor has \(place.count) bytes; \(place.written) are written, \(bytes.count) more were given")
        }
        try file.write(bytes, at: place.offset + place.written)
        place.written += bytes.count
        places[name] = place
    }

    /// Checks that every tensor is whole, makes the file durable and puts it in its place.
    ///
    /// - Throws: ``FormatError`` naming a tensor that is not whole, or the error of the disk.
    public func finish() throws {
        for (name, place) in places.entries where place.written < place.count {
            throw FormatError(
                file: path, place: .key(name), "only \(place.written) of the tensor's \(place.count) bytes were written"
            )
        }
        try file.commit()
    }

    /// Gives the file up and leaves nothing behind; after ``finish()`` it does nothing.
    public func cancel() { file.cancel() }
}
