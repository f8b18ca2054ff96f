import Formats
import Foundation
import TestSupport
import Testing

/// Every reader is given broken files, in a process of its own: it accepts them or says what is wrong with which file,
/// never crashes, hangs, or takes memory that the file does not justify, and stays in the folder that it was given.
struct HostileFileTests {
    private static let fuzzer = RepositoryPaths.program("Fuzzer")

    private static let readers = [
        "json", "jsonl", "rows.json", "rows.jsonl", "rows.csv", "rows.tsv", "rows.jsonl.gz", "safetensors",
        "safetensors-index", "gguf", "gguf-tokenizer", "gguf-configuration",
        "tokenizer.json", "tokenizer_config.json", "template", "recipe", "config.json", "adapter_config.json",
        "adapter_model.safetensors", "adapter_model.ternary", "checkpoint", "training-state", "token-table",
        "metrics",
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

    /// To Swift's strings a slash with a mark over it is no slash; to the system it is one.
    @Test func namesDoNotLeadOutOfTheirFolder() throws {
        for name in ["", ".", "..", "../x", "/x", "a/b", "..\u{2F}\u{301}x", "a\u{0}b"] {
            #expect(!isPlainFileName(name), "\(name.debugDescription)")
            try withTemporaryFolder { folder in
                let index: JSON = ["weight_map": ["w": .string(name)]]
                let path = try folder.write(index.compact, to: "model.safetensors.index.json")
                let error = #expect(throws: FormatError.self) { try SafetensorsCheckpoint(path: folder.path) }
                #expect(error?.description.contains(path) ?? false)
                #expect(error?.message.contains("the same folder") ?? false)
            }
        }
        for name in ["a", ".a", "..a", "model-00001-of-00002.safetensors", "é"] { #expect(isPlainFileName(name)) }
    }

    /// What the checks are worth: readers that misbehave on purpose are noticed.
    @Test(arguments: [
        ("control-memory", "MiB more than it may"),
        ("control-outside", "out of its folder, to outside.safetensors"),
        ("control-name", "out of its folder, to outside.safetensors"),
        ("control-error", "the error is a CocoaError"),
        ("control-nameless", "does not name the file"),
        ("control-allocation", nil), ("control-trap", nil), ("control-hang", nil),
    ])
    func aReaderThatMisbehavesIsNoticed(_ reader: String, words: String?) async throws {
        let command = try RunningCommand(
            Self.fuzzer, [reader, "1", "2000"], environment: ["OMP_NUM_THREADS": "1", "SWIFT_BACKTRACE": "enable=no"])
        let result = try await command.wait(timeout: 60)
        let report = "status \(result.status): \(result.output)\(result.errors)"
        if let words {
            #expect(result.status == 3 && result.output.contains(words), "\(report)")
        } else {
            // A signal has ended the process.
            #expect(result.status > 128, "\(report)")
        }
        if let line = result.output.split(separator: "\n").first, line.hasPrefix("in ") {
            try? FileManager.default.removeItem(atPath: String(line.dropFirst(3)))
        }
    }

    @Test func everyReaderIsTried() async throws {
        let result = try await RunningCommand(Self.fuzzer, []).wait(timeout: 60)
        #expect(result.output.split(separator: "\n").map(String.init) == Self.readers)
    }
}
