import Foundation
import TestSupport
import Testing

/// Every reader is given broken files, in a process of its own: it accepts them or says what is wrong with which file,
/// and never crashes, hangs, or takes memory that the file does not justify.
struct HostileFileTests {
    private static let fuzzer: String = {
        let tests = URL(fileURLWithPath: CommandLine.arguments.first ?? "").resolvingSymlinksInPath()
        let beside = tests.deletingLastPathComponent().appendingPathComponent("Fuzzer").path
        return FileManager.default.isExecutableFile(atPath: beside)
            ? beside : RepositoryPaths.root + "/.build/release/Fuzzer"
    }()

    private static let readers = [
        "json", "jsonl", "safetensors", "safetensors-index", "gguf", "gguf-tokenizer", "gguf-configuration",
        "tokenizer.json", "tokenizer_config.json", "template", "recipe", "config.json", "adapter_config.json",
        "adapter_model.safetensors", "checkpoint", "metrics",
    ]

    @Test(arguments: readers) func brokenFilesAreRefused(_ reader: String) async throws {
        let command = try RunningCommand(Self.fuzzer, [reader, "1", "2000"], environment: ["OMP_NUM_THREADS": "1"])
        let result = try await command.wait(timeout: 240)
        var place = ""
        if let line = result.output.split(separator: "\n").first, line.hasPrefix("in ") {
            place = (try? String(contentsOfFile: line.dropFirst(3) + "/status", encoding: .utf8)) ?? ""
        }
        #expect(
            result.status == 0,
            """
            \(reader): status \(result.status) at file \(place) of seed 1 (again: Fuzzer \(reader) 1 1 \(place)):
            \(result.output.suffix(1500))\(result.errors.suffix(1500))
            """)
        #expect(result.output.contains("\(reader): 2000 files"))
    }

    @Test func everyReaderIsTried() async throws {
        let result = try await RunningCommand(Self.fuzzer, []).wait(timeout: 60)
        #expect(result.output.split(separator: "\n").map(String.init) == Self.readers)
    }
}
