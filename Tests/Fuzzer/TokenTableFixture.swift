import Crypto
import Formats
import Foundation
import Training

/// Rows whose tokens lie in a cache that says whatever it likes.
enum TokenTableFixture {
    nonisolated(unsafe) private static var text: TextModel?

    private static func data(_ folder: String) throws -> Dataset {
        let text = try self.text ?? TextModel.load(folder + "/model")
        self.text = text
        var cache = TokenCache(folder: folder + "/cache")
        cache.minimumBytes = 0
        var options = Dataset.Options(maxLength: 4, cache: cache)
        options.maxBadRows = 1
        return try Dataset([DataSource(folder + "/rows.jsonl")], text: text, options: options)
    }

    private static func table(_ folder: String) throws -> String {
        let tables = folder + "/cache/tokens"
        guard let name = try FileManager.default.contentsOfDirectory(atPath: tables).first else {
            throw FuzzDefect(description: "there is no table")
        }
        return tables + "/" + name
    }

    static func prepare(_ folder: String) throws {
        try FileManager.default.createDirectory(atPath: folder + "/model", withIntermediateDirectories: true)
        try Seeds.write(Seeds.tokenizers[0], folder + "/model/tokenizer.json")
        try Seeds.write("{\"eos_token\": \"</s>\"}", folder + "/model/tokenizer_config.json")
        try Seeds.write(
            """
            {"text": "a b ab"}
            {"prompt": "a", "completion": "ab"}
            {"something": "else"}
            {"instruction": "a", "output": "b"}
            {"text": "abababab a a a a"}

            """, folder + "/rows.jsonl")
        _ = try data(folder)
    }

    @Sendable static func seeds() throws -> [[UInt8]] {
        let folder = NSTemporaryDirectory() + "/graft-fuzz-table-\(getpid())"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try prepare(folder)
        return [try Seeds.text(table(folder))]
    }

    /// Reads the rows by the table with its digest put right.
    @Sendable static func read(_ folder: String) throws {
        var bytes = try Seeds.text(folder + "/table.tokens")
        let end = bytes.count - 40
        if end > 0 { bytes.replaceSubrange(end..<end + 32, with: Array(SHA256.hash(data: bytes[..<end]))) }
        try Seeds.write(bytes, try table(folder))
        let data = try data(folder)
        for index in 0..<data.count {
            let example = data[index]
            guard example.ids.count == data.length(at: index), example.line > 0 else {
                throw FuzzDefect(description: "row \(index) has not the length that it says")
            }
        }
        guard (0...data.tokens).contains(data.supervisedTokens), data.rows >= data.count else {
            throw FuzzDefect(description: "the rows do not add up")
        }
        _ = data.trainingNotes
    }
}
