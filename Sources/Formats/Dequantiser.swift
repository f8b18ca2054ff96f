import CBlocks
import Dispatch

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// A stored matrix and the way to turn its rows into plain numbers.
public struct Dequantiser: Sendable {
    /// How the elements are stored.
    public let type: BlockType
    /// Number of rows.
    public let rows: Int
    /// Elements in a row, a whole number of blocks.
    public let columns: Int
    /// The rows one after the other.
    public let bytes: MappedBytes
    /// Which stored row each row of the result is.
    public let order: RowOrder
    /// The kernels to use, from 0 (portable) to ``bestLevel``; tests compare all of them.
    package var level: Int = Dequantiser.bestLevel
    /// The best kernels that this machine runs.
    package static let bestLevel = Int(cblocks_best_level())

    private let rowBytes: Int

    /// Describes a matrix.
    ///
    /// - Throws: ``FormatError`` when the bytes, the type and the sizes do not go together, or the order does not fit.
    public init(type: BlockType, rows: Int, columns: Int, bytes: MappedBytes, order: RowOrder = .stored) throws {
        guard rows >= 0, let rowBytes = type.bytes(ofRow: columns) else {
            throw FormatError(
                file: bytes.file.path,
                "a row of \(columns) elements is no whole number of \(type.name) blocks of \(type.elementsPerBlock)")
        }
        let (total, didOverflow) = rowBytes.multipliedReportingOverflow(by: rows)
        guard !didOverflow, total == bytes.count else {
            throw FormatError(
                file: bytes.file.path,
                "\(rows) rows of \(columns) \(type.name) elements do not make \(bytes.count) bytes")
        }
        guard order.fits(rows: rows) else {
            throw FormatError(file: bytes.file.path, "\(rows) rows cannot be read in the order \(order)")
        }
        (self.type, self.rows, self.columns, self.bytes, self.order) = (type, rows, columns, bytes, order)
        self.rowBytes = rowBytes
    }

    /// Writes rows as 32-bit floats.
    ///
    /// - Parameters:
    ///   - out: Room for exactly `range.count * columns` elements, row after row.
    ///   - range: Rows of the result; all of them by default.
    ///   - threads: At most so many threads share the work.
    /// - Throws: ``FormatError`` when the range or the room is wrong.
    public func write(
        float32 out: UnsafeMutableBufferPointer<Float>, rows range: Range<Int>? = nil,
        threads: Int = Dequantiser.processorCount
    ) throws {
        let range = try check(range, room: out.count)
        guard let base = out.baseAddress else { return }
        let target = Target(base: base)
        forEachRun(of: range, threads: threads) { source, blocks, offset in
            _ = cblocks_to_f32(Int32(level), type.rawValue, source, blocks, target.base + offset)
        }
    }

    /// Writes rows as bfloat16 bit patterns, each rounded once to the nearest; see ``write(float32:rows:threads:)``.
    public func write(
        bfloat16 out: UnsafeMutableBufferPointer<UInt16>, rows range: Range<Int>? = nil,
        threads: Int = Dequantiser.processorCount
    ) throws {
        let range = try check(range, room: out.count)
        guard let base = out.baseAddress else { return }
        let target = Target(base: base)
        forEachRun(of: range, threads: threads) { source, blocks, offset in
            _ = cblocks_to_bf16(Int32(level), type.rawValue, source, blocks, target.base + offset)
        }
    }

    /// Calls `body` with the place of each row of the result in the file.
    package func withRows(_ body: (UnsafeBufferPointer<UnsafePointer<UInt8>?>) -> Void) {
        withExtendedLifetime(bytes.file) {
            guard let base = bytes.bytes.bindMemory(to: UInt8.self).baseAddress else { return }
            let places: [UnsafePointer<UInt8>?] = (0..<rows).map { row in
                base + order.sourceRow(of: row, rows: rows) * rowBytes
            }
            places.withUnsafeBufferPointer(body)
        }
    }

    /// Number of processors that this process may use.
    public static var processorCount: Int { ProcessInfo.processInfo.activeProcessorCount }

    private func check(_ range: Range<Int>?, room: Int) throws -> Range<Int> {
        let range = range ?? 0..<rows
        guard range.lowerBound >= 0, range.upperBound <= rows, range.count * columns == room else {
            throw FormatError(
                file: bytes.file.path,
                "rows \(range) of a \(rows) x \(columns) matrix do not fill a buffer of \(room) elements")
        }
        return range
    }

    /// Calls `body` with runs of blocks that lie together both in the file and in the result: where they begin, how
    /// many they are, and at which element of the result they belong.
    private func forEachRun(
        of range: Range<Int>, threads: Int, _ body: @Sendable (UnsafeRawPointer, Int, Int) -> Void
    ) {
        let size = range.count * columns
        let parts = max(1, min(threads, range.count, size / Self.elementsWorthAThread))
        let blocksPerRow = columns / type.elementsPerBlock
        withExtendedLifetime(bytes.file) {
            guard let base = bytes.bytes.baseAddress, size > 0 else { return }
            let source = Source(base: base)
            inParallel(parts) { part in
                let first = range.count * part / parts
                let last = range.count * (part + 1) / parts
                if order == .stored {
                    let start = source.base + (range.lowerBound + first) * rowBytes
                    return body(start, (last - first) * blocksPerRow, first * columns)
                }
                for row in first..<last {
                    let stored = order.sourceRow(of: range.lowerBound + row, rows: rows)
                    body(source.base + stored * rowBytes, blocksPerRow, row * columns)
                }
            }
        }
    }

    /// Below this, starting a thread costs more than it saves.
    private static let elementsWorthAThread = 1 << 16
}

/// Runs `body` for 0..<parts, each on its own thread where there are any free.
private func inParallel(_ parts: Int, _ body: @Sendable (Int) -> Void) {
    if parts == 1 { return body(0) }
    DispatchQueue.concurrentPerform(iterations: parts, execute: body)
}

/// Where threads write; each writes its own rows only.
private struct Target<Element>: @unchecked Sendable {
    let base: UnsafeMutablePointer<Element>
}

/// Where threads read; nobody writes there.
private struct Source: @unchecked Sendable {
    let base: UnsafeRawPointer
}
