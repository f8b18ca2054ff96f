import Formats
import Foundation
import TestSupport
import Testing

/// Runs an operation of `Tests/Oracle/formats_oracle.py`, which reads one file and writes another.
func runOracle(_ operation: String, source: String, target: String, _ arguments: KeyedList<JSON> = [:]) async throws {
    var arguments = arguments
    arguments["source"] = JSON(source)
    arguments["target"] = JSON(target)
    _ = try await Oracle.shared.call("formats." + operation, arguments)
}

/// Runs an operation on data and returns the data that it wrote.
func oracleAnswer(_ operation: String, to input: Data, _ arguments: KeyedList<JSON> = [:]) async throws -> Data {
    try await withTemporaryFolder { folder in
        let source = try folder.write(input, to: "source")
        try await runOracle(operation, source: source, target: folder("target"), arguments)
        return try Data(contentsOf: URL(filePath: folder("target")))
    }
}

/// Runs an operation on a JSON value and returns the JSON that it wrote.
func oracleAnswer(_ operation: String, to input: JSON) async throws -> JSON {
    try JSON.parse(try await oracleAnswer(operation, to: Data(input.compact.utf8)))
}

extension TemporaryFolder {
    /// Writes a file and returns its path.
    func write(_ bytes: [UInt8], to name: String) throws -> String { try write(Data(bytes), to: name) }
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

    /// The bytes in hexadecimal digits.
    var hexadecimal: String { map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined() }
}

/// The error that `body` throws, which must be a `FormatError`.
func formatError(_ body: () throws -> Void, sourceLocation: SourceLocation = #_sourceLocation) throws -> FormatError {
    try #require(throws: FormatError.self, sourceLocation: sourceLocation, performing: body)
}
