import Formats
import Foundation
import Torch

/// The bytes of a token table, which do not change any more.
enum TokenMemory: Sendable {
    case mapped(MappedFile)
    case held(HeldBytes)

    /// Valid while the case's object lives.
    var bytes: UnsafeRawBufferPointer {
        switch self {
        case .mapped(let file): UnsafeRawBufferPointer(file.bytes)
        case .held(let held): held.bytes
        }
    }
}

/// Bytes in this process's memory, finished before they are shared.
final class HeldBytes: @unchecked Sendable {
    private var start: UnsafeMutableRawPointer?
    private var count = 0
    private var capacity = 0
    private let limit: Int

    /// Begins with no bytes.
    ///
    /// - Parameter limit: How many there may be.
    init(limit: Int) {
        self.limit = limit
    }

    deinit { free(start) }

    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: start, count: count) }

    /// - Throws: ``TrainingError`` when they are too many, or the system has no memory.
    func append(_ piece: UnsafeRawBufferPointer) throws {
        guard let source = piece.baseAddress, !piece.isEmpty else { return }
        if piece.count > capacity - count {
            let wanted = max(2 * capacity, count + piece.count, 1 << 16)
            guard count + piece.count <= limit, let grown = realloc(start, wanted) else {
                throw TrainingError(
                    "the tokens take more than the \(Units.bytes(limit)) of memory that there are for them; let them be "
                        + "cached on a disk with room (GRAFT_CACHE names the folder)")
            }
            (start, capacity) = (grown, wanted)
        }
        start?.advanced(by: count).copyMemory(from: source, byteCount: piece.count)
        count += piece.count
    }

    /// Half of the memory that is free now.
    static func roomNow() -> Int { (try? Memory.available()).map { $0 / 2 } ?? 8 << 30 }
}
