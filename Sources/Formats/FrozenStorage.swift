import Torch

/// How a frozen matrix is held in memory.
///
/// What computes with a frozen weight asks for its values and knows nothing else of it, so that every method works over
/// every storage. A plain `Tensor` is one; the others are ``PackedStorage``.
public protocol FrozenStorage: Sendable {
    /// What the values are held as: a dtype, `nf4`, `int8`, or `blocks` of a GGUF file.
    var form: String { get }
    /// The sizes, `[out, in]`.
    var shape: [Int] { get }
    /// The bytes that it takes.
    var byteCount: Int { get }
    /// The values as plain numbers.
    ///
    /// - Throws: `TorchError` when memory is short.
    func values(dtype: DType) throws -> Tensor
    /// Some rows: indices of any shape to `[..., columns]`.
    ///
    /// - Throws: `FormatError` or `TorchError` when there is no such row or memory is short.
    func rows(_ indices: Tensor, dtype: DType) throws -> Tensor
}

extension Tensor: FrozenStorage {
    /// The dtype.
    public var form: String { "\(dtype)" }
    /// The bytes of the elements.
    public var byteCount: Int { count * dtype.byteCount }

    /// The tensor itself where it has the dtype.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func values(dtype: DType) throws -> Tensor { try to(dtype: dtype) }

    /// Some rows: indices of any shape to `[..., columns]`.
    ///
    /// - Throws: `TorchError` when there is no such row.
    public func rows(_ indices: Tensor, dtype: DType) throws -> Tensor {
        try embedding(indices, self).to(dtype: dtype)
    }
}

/// A frozen matrix whose values are not there as plain numbers until they are asked for.
public protocol PackedStorage: FrozenStorage {
    /// Writes rows as `float32` or `bfloat16`, each value rounded once; several threads may do so at once.
    ///
    /// - Parameters:
    ///   - range: Rows of the matrix.
    ///   - dtype: `float32` or `bfloat16`.
    ///   - memory: Room for `range.count` rows.
    /// - Throws: ``FormatError`` when there are no such rows.
    func write(_ range: Range<Int>, as dtype: DType, to memory: UnsafeMutableRawPointer) throws
    /// Whether ``product(_:)`` multiplies without unpacking.
    var multipliesPacked: Bool { get }
    /// `x W^T` over the last dimension, `[..., columns]` to `[..., rows]`, in the input's dtype and without a gradient.
    ///
    /// - Throws: ``FormatError`` when the sizes do not go together; `TorchError` when memory is short.
    func product(_ input: Tensor) throws -> Tensor
}

extension PackedStorage {
    /// False.
    public var multipliesPacked: Bool { false }

    /// The product with the unpacked matrix.
    public func product(_ input: Tensor) throws -> Tensor { try linear(input, values(dtype: input.dtype)) }

    /// What stands for the matrix in operators; see `Tensor.packed`.
    ///
    /// - Parameter dtype: The dtype of products, `float32` or `bfloat16`.
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public func standIn(dtype: DType) throws -> Tensor {
        try Tensor.packed(rows: shape[0], columns: shape[1], dtype: dtype) { range, dtype, memory in
            (try? write(range, as: dtype, to: memory)) != nil
        }
    }

    /// The whole matrix, unpacked.
    public func values(dtype: DType) throws -> Tensor { try standIn(dtype: .float32).unpacked(dtype: dtype) }

    /// Some rows, unpacked.
    public func rows(_ indices: Tensor, dtype: DType) throws -> Tensor {
        let direct = dtype == .bfloat16 ? dtype : .float32
        let output = try Tensor.empty(indices.shape + [shape[1]], dtype: direct)
        let width = shape[1] * direct.byteCount
        let chosen: [Int] = try indices.values()
        try output.withUnsafeMutableBytes { memory in
            for (place, row) in chosen.enumerated() {
                guard (0..<shape[0]).contains(row) else {
                    throw FormatError("there is no row \(row) in a matrix of \(shape[0]) rows")
                }
                guard let start = memory.baseAddress else { return }
                try write(row..<row + 1, as: direct, to: start + place * width)
            }
        }
        return try output.to(dtype: dtype)
    }
}

extension Dequantiser: PackedStorage {
    /// `blocks`.
    public var form: String { "blocks" }
    /// The sizes, `[out, in]`.
    public var shape: [Int] { [rows, columns] }
    /// The bytes of the blocks in the mapped file.
    public var byteCount: Int { bytes.count }

    /// Unpacks rows.
    ///
    /// - Throws: ``FormatError`` when there are no such rows.
    public func write(_ range: Range<Int>, as dtype: DType, to memory: UnsafeMutableRawPointer) throws {
        let count = range.count * columns
        if dtype == .bfloat16 {
            let start = memory.bindMemory(to: UInt16.self, capacity: count)
            try write(bfloat16: UnsafeMutableBufferPointer(start: start, count: count), rows: range, threads: 1)
        } else {
            let start = memory.bindMemory(to: Float.self, capacity: count)
            try write(float32: UnsafeMutableBufferPointer(start: start, count: count), rows: range, threads: 1)
        }
    }
}

extension PackedMatrix: PackedStorage {
    /// `blocks`.
    public var form: String { "blocks" }
    /// The sizes, `[out, in]`.
    public var shape: [Int] { stored.shape }
    /// True.
    public var multipliesPacked: Bool { true }

    /// Unpacks rows.
    ///
    /// - Throws: ``FormatError`` when there are no such rows.
    public func write(_ range: Range<Int>, as dtype: DType, to memory: UnsafeMutableRawPointer) throws {
        try stored.write(range, as: dtype, to: memory)
    }
}

/// A matrix in fp32, row after row in main memory.
func quantisable(_ matrix: Tensor) throws -> Tensor {
    guard matrix.rank == 2 else { throw FormatError("expected a matrix to quantise, found \(matrix)") }
    let plain = try matrix.detached().to(dtype: .float32, device: .cpu).contiguous()
    guard try plain.isAllFinite() else {
        throw FormatError("a matrix with values that are no finite numbers cannot be quantised")
    }
    return plain
}

/// Refuses rows that a matrix does not have.
func requireRows(_ range: Range<Int>, of shape: [Int]) throws {
    guard range.lowerBound >= 0, range.upperBound <= shape[0] else {
        throw FormatError("there are no rows \(range) in a matrix of \(shape[0]) rows")
    }
}
