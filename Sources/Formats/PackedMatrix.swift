import CBlocks

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// A quantised matrix that is multiplied without being unpacked.
///
/// Its blocks are regrouped once, codes and scales as they are, so that 16 rows are multiplied at a time; it takes
/// about as much memory as in the file: a third more for `Q4_K` to `Q6_K`, whose scales become fp32, 6 to 8 bits a value
/// for `Q3_K` and `Q2_K`.
/// The vectors of a product are rounded to 8 bits, 32 values with a scale of their own:
/// for random vectors a product is off by 0.4% of its length. All sums are formed in an order that does not depend on
/// the number of threads.
public final class PackedMatrix: @unchecked Sendable {
    /// The stored matrix, whose rows can be unpacked one by one.
    public let stored: Dequantiser
    /// The bytes of the regrouped blocks.
    public let byteCount: Int
    /// The kernels to use, one of ``levels``; tests compare all of them.
    package var level: Int = PackedMatrix.bestLevel
    /// The kernels that this machine runs, from the portable ones to the best.
    package static let levels = (0..<Int(CBLOCKS_PRODUCTS_LEVELS)).filter {
        cblocks_products_run(Int32($0)) != 0
    }
    /// The best kernels that this machine runs.
    package static let bestLevel = Int(cblocks_best_products())
    /// Their name.
    public static var kernels: String {
        let names = ["portable", "AVX2", "AVX-VNNI", "AVX-512 VNNI", "NEON dotprod"]
        return names.indices.contains(bestLevel) ? names[bestLevel] : "portable"
    }

    private let panels: UnsafeMutableRawPointer

    /// Whether matrices of a type with so many columns can be multiplied packed; those that cannot are unpacked.
    public static func canPack(_ type: BlockType, columns: Int) -> Bool {
        columns > 0 && cblocks_can_pack(type.rawValue, columns) != 0
    }

    /// Regroups the blocks of a stored matrix.
    ///
    /// - Throws: ``FormatError`` when the type cannot be packed or memory is short.
    public init(_ stored: Dequantiser, threads: Int = Dequantiser.processorCount) throws {
        let (type, rows, columns) = (stored.type, stored.rows, stored.columns)
        let path = stored.bytes.file.path
        guard Self.canPack(type, columns: columns) else {
            throw FormatError(file: path, "\(type.name) rows of \(columns) elements cannot be multiplied packed")
        }
        byteCount = cblocks_packed_bytes(type.rawValue, rows, columns)
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 64, max(byteCount, 64)) == 0, let memory else {
            throw FormatError(file: path, "\(byteCount) bytes for a packed matrix exceed the free memory")
        }
        panels = memory
        self.stored = stored
        stored.withRows { sources in
            guard let sources = sources.baseAddress else { return }
            cblocks_pack(
                Int32(clamping: threads), type.rawValue, rows, columns, sources,
                memory.assumingMemoryBound(to: UInt8.self))
        }
    }

    deinit { free(panels) }

    /// `y[t][r] = sum over c of W[r][c] x[t][c]`.
    ///
    /// - Parameters:
    ///   - x: Whole vectors of as many values as the matrix has columns.
    ///   - y: Room for as many vectors of as many values as it has rows.
    ///   - threads: At most so many threads share the work.
    /// - Throws: ``FormatError`` when the sizes do not go together or memory is short.
    public func multiply(
        _ x: UnsafeBufferPointer<Float>, into y: UnsafeMutableBufferPointer<Float>,
        threads: Int = Dequantiser.processorCount
    ) throws {
        let count = x.count / stored.columns
        guard x.count == count * stored.columns, y.count == count * stored.rows else {
            throw FormatError(
                file: stored.bytes.file.path,
                "\(x.count) values cannot be multiplied by a \(stored.rows) x \(stored.columns) matrix to \(y.count)")
        }
        guard let input = x.baseAddress, let output = y.baseAddress, count > 0 else { return }
        var matrix = view
        guard cblocks_multiply(Int32(level), Int32(clamping: threads), &matrix, input, count, output) == 0 else {
            throw FormatError(
                file: stored.bytes.file.path, "memory is short for a product of \(count) vectors: use fewer at once")
        }
    }

    /// The panels as the kernels take them; valid while this object lives.
    package var view: cblocks_packed {
        cblocks_packed(
            type: stored.type.rawValue, rows: stored.rows, columns: stored.columns,
            panels: UnsafePointer(panels.assumingMemoryBound(to: UInt8.self)))
    }
}
