import Formats
import Foundation
import Testing

/// The root of the repository.
let repositoryRoot = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

/// The real model that the set-up fetches.
let smolLMPath = repositoryRoot.appending(path: ".graft/assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf").path

/// A folder that goes away with this object.
final class TemporaryFolder {
    let path: String

    init() throws {
        let url = FileManager.default.temporaryDirectory.appending(path: "graft-formats-" + UUID().uuidString)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        path = url.path
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String) -> String { path + "/" + name }

    func write(_ bytes: some Collection<UInt8>, to name: String) throws -> String {
        try Data(bytes).write(to: URL(filePath: file(name)))
        return file(name)
    }

    var names: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted() }
}

/// Python's answer to one command of `Tests/Oracle/formats_oracle.py`.
enum Oracle {
    /// Runs a command on a file; returns the file that it wrote.
    static func run(_ command: String, file: String, output: String, _ arguments: String...) throws {
        let process = Process()
        let chosen = ProcessInfo.processInfo.environment["GRAFT_ORACLE_PYTHON"]
        let python = chosen ?? repositoryRoot.appending(path: ".graft/oracle/bin/python").path
        process.executableURL = URL(filePath: python)
        let script = repositoryRoot.appending(path: "Tests/Oracle/formats_oracle.py").path
        process.arguments = [script, command, file, output] + arguments
        let errors = Pipe()
        process.standardError = errors
        try process.run()
        let message = errors.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0, "\(String(decoding: message, as: UTF8.self))")
    }

    /// Runs a command on data and returns the data that it wrote.
    static func answer(_ command: String, to input: Data, _ argument: String? = nil) throws -> Data {
        let folder = try TemporaryFolder()
        let file = try folder.write(input, to: "input")
        if let argument {
            try run(command, file: file, output: folder.file("output"), argument)
        } else {
            try run(command, file: file, output: folder.file("output"))
        }
        return try Data(contentsOf: URL(filePath: folder.file("output")))
    }

    /// Runs a command on a JSON value and returns the JSON that it wrote.
    static func answer(_ command: String, to input: JSON) throws -> JSON {
        try JSON.parse(try answer(command, to: Data(input.compact.utf8)))
    }
}

/// A small generator (SplitMix64), so that failures repeat.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

extension Data {
    /// The bytes of plain values.
    init<Value: BitwiseCopyable>(values: [Value]) {
        self = values.withUnsafeBytes { Data($0) }
    }

    /// The bytes as plain values.
    func values<Value: BitwiseCopyable>(as type: Value.Type) -> [Value] {
        withUnsafeBytes { bytes in
            (0..<(bytes.count / MemoryLayout<Value>.size)).map {
                bytes.loadUnaligned(fromByteOffset: $0 * MemoryLayout<Value>.size, as: type)
            }
        }
    }
}

/// The error that `body` throws, which must be a `FormatError`.
func formatError(_ body: () throws -> Void, sourceLocation: SourceLocation = #_sourceLocation) throws -> FormatError {
    try #require(throws: FormatError.self, sourceLocation: sourceLocation, performing: body)
}
