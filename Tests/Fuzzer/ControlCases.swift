import Formats
import Foundation

/// Readers that do what none may, to see that it is noticed: each misbehaves when the file says nothing that it expects.
let controlCases: [FuzzCase] = [
    control("control-memory") { _ in
        // Less than the process may have, more than a file of some bytes justifies.
        let bytes = [UInt8](repeating: 1, count: 150 << 20)
        blackHole = Int(bytes[bytes.count / 2])
    },
    control("control-allocation") { _ in
        let bytes = UnsafeMutableRawPointer.allocate(byteCount: 1 << 30, alignment: 16)
        blackHole = Int(bytes.load(as: UInt8.self))
        bytes.deallocate()
    },
    control("control-outside") { _ = try Seeds.text($0 + "/../outside.safetensors") },
    control("control-trap") { _ in
        let values = [1, 2, 3]
        blackHole = values[blackHole + 3]
    },
    control("control-hang", seconds: 1) { _ in
        while blackHole >= 0 { usleep(1000) }
    },
    control("control-error") { _ in throw CocoaError(.fileReadUnknown) },
    control("control-nameless") { _ in throw FormatError(file: "elsewhere", "this does not say which file it is") },
]

/// What the optimiser must not know.
nonisolated(unsafe) private var blackHole = 0

private func control(
    _ name: String, seconds: UInt32 = 30, misbehave: @escaping @Sendable (String) throws -> Void
) -> FuzzCase {
    FuzzCase(name, "file", .text, texts: ["good"], seconds: seconds) {
        if try Seeds.text($0 + "/file") != Array("good".utf8) { try misbehave($0) }
    }
}
