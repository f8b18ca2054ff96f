import CBlocks
import Torch

/// A matrix of 8-bit integers: each row is scaled by its largest absolute value over 127.
///
/// These are the weights of LLM.int8, arXiv 2208.07339; what is multiplied with them is not quantised.
public final class Int8Matrix: PackedStorage {
    /// The sizes, `[out, in]`.
    public let shape: [Int]
    /// The codes, row after row.
    package let codes: [Int8]
    /// The largest absolute value of each row.
    package let scales: [Float]

    /// `int8`.
    public var form: String { "int8" }
    /// The bytes of codes and scales.
    public var byteCount: Int { codes.count + 4 * scales.count }

    /// Quantises a matrix.
    ///
    /// - Parameter matrix: `[out, in]` of finite values.
    /// - Throws: ``FormatError`` when it is no matrix or has values that are no finite numbers.
    public init(_ matrix: Tensor) throws {
        shape = matrix.shape
        let plain = try quantisable(matrix)
        let (rows, columns) = (plain.size(0), plain.size(1))
        let threads = Int32(clamping: try Machine.threads())
        var scales = [Float](repeating: 0, count: rows)
        codes = try plain.withUnsafeMutableBytes { memory in
            [Int8](unsafeUninitializedCapacity: rows * columns) { codes, count in
                if let values = memory.bindMemory(to: Float.self).baseAddress, let codes = codes.baseAddress {
                    cblocks_int8_quantise(threads, values, rows, columns, codes, &scales)
                }
                count = rows * columns
            }
        }
        self.scales = scales
    }

    /// Unpacks rows.
    ///
    /// - Throws: ``FormatError`` when there are no such rows.
    public func write(_ range: Range<Int>, as dtype: DType, to memory: UnsafeMutableRawPointer) throws {
        try requireRows(range, of: shape)
        let (rows, columns) = (range.count, shape[1])
        codes.withUnsafeBufferPointer { codes in
            scales.withUnsafeBufferPointer { scales in
                guard let codes = codes.baseAddress, let scales = scales.baseAddress else { return }
                let (part, ofPart) = (codes + range.lowerBound * columns, scales + range.lowerBound)
                if dtype == .bfloat16 {
                    let out = memory.bindMemory(to: UInt16.self, capacity: rows * columns)
                    cblocks_int8_to_bf16(part, ofPart, rows, columns, out)
                } else {
                    let out = memory.bindMemory(to: Float.self, capacity: rows * columns)
                    cblocks_int8_to_f32(part, ofPart, rows, columns, out)
                }
            }
        }
    }
}
