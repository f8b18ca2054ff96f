import CZlib

/// A file of tensors that are their start plus a part of one ternary vector; docs/adapters.md has it byte by byte.
public struct TernaryFile: Sendable {
    /// What a tensor's part of the vector is added to.
    public enum Start: UInt8, Sendable {
        /// Zeros.
        case zero = 0
        /// What the adapter's settings and its base model start the tensor with, such as ones.
        case own = 1
        /// What they and the file's seed draw for it.
        case drawn = 2
    }

    /// A tensor of the file.
    public struct Entry: Sendable, Equatable {
        /// Sizes, row-major.
        public var shape: [Int]
        /// What its part of the vector is added to.
        public var start: Start
        /// The norm of the start, by which another one is noticed; 0 for zeros.
        public var startNorm: Float

        /// Describes a tensor.
        public init(shape: [Int], start: Start = .zero, startNorm: Float = 0) {
            self.shape = shape
            self.start = start
            self.startNorm = startNorm
        }
    }

    /// The file's path.
    public let path: String
    /// The tensors, sorted by the bytes of their names; their values follow one another in the vector in this order.
    public let tensors: KeyedList<Entry>
    /// The vector.
    public let vector: TernaryVector
    /// The share of entries that was asked for.
    public let density: Double
    /// The factor of the vector's deviation that gave the scale.
    public let alpha: Float
    /// The seed that random starts are drawn from; nil where no tensor has one.
    public let seed: UInt64?
    /// The place of each tensor's first value in the vector.
    private let offsets: [Int]

    /// The first bytes of every such file.
    static let magic = Array("GRAFTTRI".utf8)
    /// The version without a seed, and the one with.
    static let versions: (plain: UInt32, seeded: UInt32) = (1, 2)

    /// Writes a file.
    ///
    /// - Parameters:
    ///   - path: Where it will be.
    ///   - tensors: The tensors, sorted by the bytes of their names.
    ///   - vector: All their values.
    ///   - density: The share of entries that was asked for.
    ///   - alpha: The factor of the vector's deviation that gave the scale.
    ///   - seed: The seed that random starts are drawn from; nil where no tensor has one.
    /// - Returns: The bytes of the codes, and of the file.
    /// - Throws: ``FormatError`` when the tensors are not sorted or not the vector, a start lacks its seed, or the file
    ///   cannot be written.
    @discardableResult
    public static func write(
        to path: String, tensors: KeyedList<Entry>, vector: TernaryVector, density: Double, alpha: Float,
        seed: UInt64? = nil
    ) throws -> (codes: Int, file: Int) {
        let total = try offsets(of: tensors, file: path)[tensors.count]
        guard total == vector.count else {
            throw FormatError(file: path, "the tensors have \(total) values, the vector has \(vector.count)")
        }
        if seed == nil, let drawn = tensors.first(where: { $0.value.start == .drawn }) {
            throw FormatError(file: path, place: .key(drawn.key), "a start that is drawn needs the seed")
        }
        let kept = vector.keptCount
        let lowBits = RiceCode.lowBits(kept: kept, of: total)
        let codes = RiceCode.encoded(vector, lowBits: lowBits)
        guard total <= limit(codeBytes: codes.count) else {
            throw FormatError(
                file: path, "\(kept) of \(total) values are too few for this format; keep at least one in a thousand")
        }
        var bytes = ByteSink(bytes: magic)
        bytes.append(seed == nil ? versions.plain : versions.seeded)
        bytes.append(UInt32(tensors.count))
        bytes.append(UInt64(total))
        bytes.append(UInt64(kept))
        bytes.append(vector.scale.bitPattern)
        bytes.append(alpha.bitPattern)
        bytes.append(density.bitPattern)
        bytes.append(UInt8(lowBits))
        if let seed { bytes.append(seed) }
        var last: [UInt8] = []
        for (name, entry) in tensors {
            try bytes.append(name: Array(name.utf8), after: last, file: path)
            try bytes.append(entry, name: name, file: path)
            last = Array(name.utf8)
        }
        bytes.append(UInt64(codes.count))
        bytes.bytes += codes
        bytes.append(bytes.bytes.withUnsafeBytes { checksum($0) })
        let file = try AtomicFile(path: path)
        try bytes.bytes.withUnsafeBytes { try file.write($0) }
        try file.commit()
        return (codes.count, bytes.bytes.count)
    }

    /// Opens a file.
    ///
    /// - Throws: ``FormatError`` when it is missing, truncated, damaged, or says more than it holds.
    public init(path: String) throws {
        let file = try MappedFile(path: path)
        var reader = try TernaryReader(file)
        (tensors, vector, density, alpha, seed) = try withExtendedLifetime(file) { try reader.contents() }
        self.path = path
        offsets = try Self.offsets(of: tensors, file: path)
    }

    /// A tensor's part of the vector as numbers, row-major.
    ///
    /// - Throws: ``FormatError`` when there is no such tensor, or `memory` is not of its size.
    public func write(_ name: String, to memory: UnsafeMutableBufferPointer<Float>) throws {
        guard let index = tensors.position(of: name) else {
            throw FormatError(file: path, place: .key(name), "the file lacks this tensor")
        }
        let range = offsets[index]..<offsets[index + 1]
        guard range.count == memory.count else {
            throw FormatError(
                file: path, place: .key(name), "the tensor has \(range.count) values, not \(memory.count)")
        }
        vector.write(range, to: memory)
    }

    /// The number of values before each tensor, and of all.
    static func offsets(of tensors: KeyedList<Entry>, file: String) throws -> [Int] {
        var offsets = [0]
        for (name, entry) in tensors {
            guard let size = product(of: entry.shape), size <= Int.max / 8 - offsets[offsets.count - 1] else {
                throw FormatError(file: file, place: .key(name), "the shape \(entry.shape) has no size")
            }
            offsets.append(offsets[offsets.count - 1] + size)
        }
        return offsets
    }

    /// The most values that so many bytes may stand for, so that a small file does not ask for a large memory.
    static func limit(codeBytes: Int) -> Int { 1 << 20 + 1024 * min(codeBytes, 1 << 40) }

    /// CRC-32 as in gzip.
    package static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        UInt32(truncatingIfNeeded: crc32_z(0, bytes.bindMemory(to: UInt8.self).baseAddress, bytes.count))
    }
}
