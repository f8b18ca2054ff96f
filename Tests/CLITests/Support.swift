import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// What the tests of the command line share: a tiny model that can read and write text, and rows to train on.
enum Fixtures {
    /// A random Llama of some thousand weights a layer, with SmolLM2's tokenizer and chat template.
    static func model() async throws -> String {
        try await made.value
    }

    private static let made = Task {
        let folder = try await TinyModels.shared.folder(
            "llama-tied", seed: 11,
            options: ["overrides": ["vocab_size": 49_152, "max_position_embeddings": 512, "num_hidden_layers": 2]])
        try Tokenizer(gguf: GGUFFile(path: RepositoryPaths.required(RepositoryPaths.smolLM2))).write(toFolder: folder)
        return folder
    }

    /// A file of rows whose answer follows from the question.
    static func rows(_ folder: TemporaryFolder, count: Int = 12, name: String = "rows.jsonl") throws -> String {
        let words = ["red", "green", "blue", "black", "white"]
        let lines = (0..<count).map { index in
            let row: JSON = [
                "prompt": .string("The \(words[index % 5]) \(index) is"), "completion": .string(" \(words[index % 3])"),
            ]
            return row.compact
        }
        return try folder.write(lines.joined(separator: "\n") + "\n", to: name)
    }

    /// The options of a small, quick run; tests run side by side, so that one thread each is the fastest.
    static func quickRun(model: String, rows: String, output: String) -> [String] {
        [
            "train", "--model", model, "--data", rows, "--steps", "4", "--batch-size", "2", "--lr", "0.01", "--dtype",
            "float32", "--threads", "1", "--set", "r=2", "--set", "target_modules=all-linear", "--output", output,
        ]
    }
}

extension CommandResult {
    /// The one JSON document on standard output.
    func json() throws -> JSON { try JSON.parse(output, file: "standard output") }

    /// Checks that the command failed with a code and one sentence that holds some words, and wrote no result.
    func expectFailure(
        _ code: Int32, _ words: String..., sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(status == code, "\(errors)", sourceLocation: sourceLocation)
        #expect(output.isEmpty, sourceLocation: sourceLocation)
        let lines = errors.split(separator: "\n").filter { $0.hasPrefix("graft: error: ") }
        #expect(lines.count == 1, "\(errors)", sourceLocation: sourceLocation)
        for word in words {
            #expect(lines.first?.contains(word) == true, "\(word) is not in: \(errors)", sourceLocation: sourceLocation)
        }
    }
}
