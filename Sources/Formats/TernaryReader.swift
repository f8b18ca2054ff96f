/// Reads a ``TernaryFile`` and believes nothing that its bytes do not bear out.
struct TernaryReader {
    private let file: MappedFile
    private var cursor: ByteCursor

    init(_ file: MappedFile) throws {
        self.file = file
        cursor = ByteCursor(try file.slice(offset: 0, count: file.count))
    }

    mutating func contents() throws -> (KeyedList<TernaryFile.Entry>, TernaryVector, Double, Float, UInt64?) {
        let isSeeded = try requireWhole()
        let tensorCount = try cursor.integer(UInt32.self)
        let total = try cursor.integer(UInt64.self)
        let kept = try cursor.integer(UInt64.self)
        let scale = Float(bitPattern: try cursor.integer(UInt32.self))
        let alpha = Float(bitPattern: try cursor.integer(UInt32.self))
        let density = Double(bitPattern: try cursor.integer(UInt64.self))
        let lowBits = Int(try cursor.integer(UInt8.self))
        guard scale >= 0, scale.isFinite, alpha > 0, alpha.isFinite, density > 0, density <= 1 else {
            throw cursor.error(
                "expected a scale, an alpha and a density of at most 1; found \(scale), \(alpha), \(density)", at: 32)
        }
        guard lowBits <= RiceCode.mostLowBits else {
            throw cursor.error("\(lowBits) low bits of a gap; there are at most \(RiceCode.mostLowBits)", at: 48)
        }
        let seed = isSeeded ? try cursor.integer(UInt64.self) : nil
        let tensors = try entries(Int(tensorCount), isSeeded: isSeeded)
        let size = try TernaryFile.offsets(of: tensors, file: file.path)[tensors.count]
        let codes = try cursor.take(cursor.count(of: "bytes of codes", size: 1))
        guard total == UInt64(size), size <= TernaryFile.limit(codeBytes: codes.count) else {
            throw cursor.error(
                "\(total) values are said to be here, the tensors have \(size), and \(codes.count) bytes of codes stand "
                    + "for at most \(TernaryFile.limit(codeBytes: codes.count))", at: 16)
        }
        // A kept entry has at least the end of its gap and its sign.
        guard kept <= total, kept <= UInt64(codes.count) * 8 / UInt64(lowBits + 2) else {
            throw cursor.error(
                "\(kept) kept entries cannot be in \(total) values and \(codes.count) bytes of codes", at: 24)
        }
        var vector = TernaryVector(count: size, scale: scale)
        let start = cursor.position - codes.count
        if let wrong = RiceCode.decode(codes, kept: Int(kept), lowBits: lowBits, into: &vector) {
            throw cursor.error(wrong.message, at: start + wrong.byte)
        }
        guard cursor.remaining == 4 else {
            throw cursor.error(
                "the checksum of 4 bytes is all that may follow the codes; \(cursor.remaining) bytes do",
                at: cursor.position)
        }
        return (tensors, vector, density, alpha, seed)
    }

    /// Checks the first bytes and the checksum over all but the last four; says whether there is a seed.
    private mutating func requireWhole() throws -> Bool {
        guard file.count >= 12, try cursor.take(8).elementsEqual(TernaryFile.magic) else {
            throw FormatError(file: file.path, "this is not a compressed adapter: it does not begin with GRAFTTRI")
        }
        let version = try cursor.integer(UInt32.self)
        let known = TernaryFile.versions
        guard version == known.plain || version == known.seeded else {
            throw cursor.error(
                "version \(version) of this format is unknown; expected \(known.plain) or \(known.seeded)", at: 8)
        }
        let body = try file.slice(offset: 0, count: file.count - 4)
        guard try TernaryFile.checksum(body.bytes) == file.integer(at: file.count - 4, as: UInt32.self) else {
            throw cursor.error("the checksum does not fit the bytes before it; the file is damaged", at: body.count)
        }
        return version == known.seeded
    }

    private mutating func entries(_ count: Int, isSeeded: Bool) throws -> KeyedList<TernaryFile.Entry> {
        var entries = KeyedList<TernaryFile.Entry>()
        var last: [UInt8] = []
        for _ in 0..<count {
            let place = cursor.position
            let shared = Int(try cursor.integer(UInt16.self))
            guard shared <= last.count else {
                throw cursor.error("the name before has fewer than \(shared) bytes to begin with", at: place)
            }
            let name = Array(last[..<shared]) + Array(try cursor.take(Int(cursor.integer(UInt16.self))))
            guard let text = String(validating: name, as: UTF8.self), last.lexicographicallyPrecedes(name) else {
                throw cursor.error("expected a name in UTF-8 that follows the one before in order", at: place)
            }
            entries.appendIfNew(key: text, value: try entry(isSeeded: isSeeded))
            last = name
        }
        return entries
    }

    private mutating func entry(isSeeded: Bool) throws -> TernaryFile.Entry {
        let place = cursor.position
        let code = try cursor.integer(UInt8.self)
        guard let start = TernaryFile.Start(rawValue: code), start != .drawn || isSeeded else {
            throw cursor.error(
                "the start of a tensor is \(code); expected 0 or 1\(isSeeded ? " or 2" : "")", at: place)
        }
        var norm: Float = 0
        if start != .zero { norm = Float(bitPattern: try cursor.integer(UInt32.self)) }
        guard norm >= 0, norm.isFinite else {
            throw cursor.error(
                "the norm of a start is \(norm); expected a finite number that is not negative", at: place)
        }
        let rank = Int(try cursor.integer(UInt8.self))
        let shape = try (0..<rank).map { _ in Int(try cursor.integer(UInt32.self)) }
        return TernaryFile.Entry(shape: shape, start: start, startNorm: norm)
    }
}

/// Bytes of a file in the making, little endian.
struct ByteSink {
    var bytes: [UInt8]

    mutating func append<Value: FixedWidthInteger>(_ value: Value) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    /// A name as what it shares with the one before and the rest.
    mutating func append(name: [UInt8], after last: [UInt8], file: String) throws {
        guard last.lexicographicallyPrecedes(name), name.count <= Int(UInt16.max) else {
            throw FormatError(
                file: file, place: .key(String(decoding: name, as: UTF8.self)),
                "names must be sorted, distinct and at most 65535 bytes long")
        }
        let shared = zip(last, name).prefix { $0 == $1 }.count
        append(UInt16(shared))
        append(UInt16(name.count - shared))
        bytes += name[shared...]
    }

    mutating func append(_ entry: TernaryFile.Entry, name: String, file: String) throws {
        append(entry.start.rawValue)
        if entry.start != .zero { append(entry.startNorm.bitPattern) }
        guard entry.shape.count <= Int(UInt8.max), entry.shape.allSatisfy({ UInt32(exactly: $0) != nil }) else {
            throw FormatError(file: file, place: .key(name), "the shape \(entry.shape) cannot be written")
        }
        append(UInt8(entry.shape.count))
        for size in entry.shape { append(UInt32(truncatingIfNeeded: size)) }
    }
}
