import CBlocks
import Torch

/// A matrix in 4-bit NormalFloat: 16 levels at the quantiles of a normal distribution, scaled by the largest value of
/// each block of 64. arXiv 2305.14314
///
/// With double quantisation the scales are 8-bit numbers themselves, in blocks of 256 around their mean: 4.127 bits a
/// value instead of 4.5. Levels, map and order of operations are those of bitsandbytes.
public final class NF4Matrix: PackedStorage {
    /// The sizes, `[out, in]`.
    public let shape: [Int]
    /// Two codes a byte, row after row, the first in the high four bits.
    package let codes: [UInt8]
    /// The largest absolute value of each block of 64; empty under double quantisation.
    package let scales: [Float]
    /// Under double quantisation the scales' codes in the signed dynamic map, else empty.
    package let scaleCodes: [UInt8]
    /// The largest distance of a scale from ``offset`` in each block of 256.
    package let scaleScales: [Float]
    /// The mean of all scales.
    package let offset: Float

    /// Whether the scales are quantised, too.
    public let quantisesScales: Bool

    /// `nf4`.
    public var form: String { "nf4" }
    /// The bytes of codes and scales.
    public var byteCount: Int {
        codes.count + 4 * scales.count + scaleCodes.count + 4 * scaleScales.count + (quantisesScales ? 4 : 0)
    }

    /// The 16 levels, ascending.
    package static let levels = withUnsafeBytes(of: cblocks_nf4_levels) { Array($0.bindMemory(to: Float.self)) }
    /// The 256 values of the map for scales, ascending.
    package static let scaleMap = [Float](unsafeUninitializedCapacity: 256) { memory, count in
        if let start = memory.baseAddress { cblocks_dynamic_map(start) }
        count = 256
    }

    /// Quantises a matrix.
    ///
    /// - Parameters:
    ///   - matrix: `[out, in]` of finite values.
    ///   - quantisesScales: Whether scales are quantised, too.
    /// - Throws: ``FormatError`` when it is no matrix or has values that are no finite numbers.
    public init(_ matrix: Tensor, quantisesScales: Bool = true) throws {
        shape = matrix.shape
        self.quantisesScales = quantisesScales
        let plain = try quantisable(matrix)
        let (count, threads) = (plain.count, Int32(clamping: try Machine.threads()))
        let blocks = (count + Int(CBLOCKS_NF4_BLOCK) - 1) / Int(CBLOCKS_NF4_BLOCK)
        var scales: [Float] = []
        codes = try plain.withUnsafeMutableBytes { memory in
            [UInt8](unsafeUninitializedCapacity: (count + 1) / 2) { codes, codeCount in
                scales = [Float](unsafeUninitializedCapacity: blocks) { scales, scaleCount in
                    let values = memory.bindMemory(to: Float.self).baseAddress
                    if let values, let codes = codes.baseAddress, let scales = scales.baseAddress {
                        cblocks_nf4_quantise(threads, values, count, codes, scales)
                    }
                    scaleCount = blocks
                }
                codeCount = (count + 1) / 2
            }
        }
        guard quantisesScales else {
            (self.scales, scaleCodes, scaleScales, offset) = (scales, [], [], 0)
            return
        }
        var scaleCodes = [UInt8](repeating: 0, count: blocks)
        var scaleScales = [Float](
            repeating: 0, count: (blocks + Int(CBLOCKS_SCALE_BLOCK) - 1) / Int(CBLOCKS_SCALE_BLOCK))
        var offset: Float = 0
        cblocks_quantise_scales(scales, blocks, &scaleCodes, &scaleScales, &offset)
        (self.scales, self.scaleCodes, self.scaleScales, self.offset) = ([], scaleCodes, scaleScales, offset)
    }

    /// Unpacks rows.
    ///
    /// - Throws: ``FormatError`` when there are no such rows.
    public func write(_ range: Range<Int>, as dtype: DType, to memory: UnsafeMutableRawPointer) throws {
        try requireRows(range, of: shape)
        let (first, count) = (range.lowerBound * shape[1], range.count * shape[1])
        codes.withUnsafeBufferPointer { codes in
            scales.withUnsafeBufferPointer { scales in
                scaleCodes.withUnsafeBufferPointer { scaleCodes in
                    scaleScales.withUnsafeBufferPointer { scaleScales in
                        guard let codes = codes.baseAddress else { return }
                        var matrix = cblocks_nf4(
                            codes: codes, scales: quantisesScales ? nil : scales.baseAddress,
                            scale_codes: scaleCodes.baseAddress, scale_scales: scaleScales.baseAddress, offset: offset)
                        if dtype == .bfloat16 {
                            let out = memory.bindMemory(to: UInt16.self, capacity: count)
                            cblocks_nf4_to_bf16(&matrix, first, count, out)
                        } else {
                            let out = memory.bindMemory(to: Float.self, capacity: count)
                            cblocks_nf4_to_f32(&matrix, first, count, out)
                        }
                    }
                }
            }
        }
    }
}
