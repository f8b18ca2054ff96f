import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Vocabularies in GGUF files beside the reference implementation on the tokenizer.json that they were made from.
struct GGUFVocabularyTests {
    /// Pipelines with the name of the pre-tokenizer that their file gives, where that is not the usual one.
    static let vocabularies: [(pipeline: String, pre: String?)] = [
        ("gpt2", nil), ("llama3", nil), ("qwen2", nil), ("qwen2", "deepseek-r1-qwen"), ("qwen35", nil), ("tekken", nil),
        ("roberta", nil), ("default", nil), ("llama2", nil), ("bert", nil), ("t5", nil),
    ]

    private func load(_ pipeline: String, pre: String? = nil) async throws -> Tokenizer {
        try await withTemporaryFolder { folder in
            let path = folder("model.gguf")
            _ = try await Oracle.shared.call(
                "pipelines.gguf",
                ["name": .string(pipeline), "path": .string(path), "pre": pre.map { .string($0) } ?? .null])
            return try Tokenizer(gguf: GGUFFile(path: path))
        }
    }

    @Test(arguments: vocabularies)
    func idsAreTheReference(pipeline: String, pre: String?) async throws {
        let tokenizer = try await load(pipeline, pre: pre)
        let corpus = try await TortureCorpusTests.corpus.value
        let lines = Array(corpus.lines.suffix(600))
        // The other files name no tokens to put around a text.
        let addsTokens = ["llama3", "roberta", "llama2", "bert", "t5"].contains(pipeline)
        for adds in addsTokens ? [false, true] : [false] {
            let expected = try await TortureCorpusTests.reference(pipeline, lines, special: adds)
            var differences = 0
            for (line, reference) in zip(lines, expected) where differences < 5 {
                let text = Tokenizer.text(of: line)
                let encoding = tokenizer.encodeWithRanges(text, addSpecialTokens: adds, trimmingBlanks: true)
                let decoded = try tokenizer.decode(reference.ids)
                guard
                    encoding.ids != reference.ids || widened(encoding.ranges, in: text) != reference.ranges
                        || Array(decoded.utf8) != reference.decoded
                else { continue }
                differences += 1
                Issue.record(
                    """
                    \(pipeline), \(String(decoding: line, as: UTF8.self).debugDescription): \(encoding.ids) at \
                    \(encoding.ranges), expected \(reference.ids) at \(reference.ranges)
                    """)
            }
        }
    }

    /// What a GGUF file only names is spelled out in the files that are written, so that other programs agree.
    @Test(arguments: ["llama3", "qwen2", "qwen35", "tekken", "roberta", "default"])
    func theWrittenFolderGivesTheSameTokens(pipeline: String) async throws {
        let tokenizer = try await load(pipeline)
        let lines = try await TortureCorpusTests.corpus.value.lines.prefix(150).map { Tokenizer.text(of: $0) }
        try await withTemporaryFolder { folder in
            try tokenizer.write(toFolder: folder.path)
            let read = try Tokenizer(folder: folder.path)
            for (line, reference) in zip(lines, try await referenceEncodings(folder.path, lines, ranges: false)) {
                #expect(tokenizer.encode(line) == reference.ids, "\(line.debugDescription)")
                #expect(
                    read.encode(line, addSpecialTokens: true) == tokenizer.encode(line, addSpecialTokens: true),
                    "\(line.debugDescription)")
            }
        }
    }

    /// Ranked merges are only a rendering of scores; SentencePiece itself is asked too.
    @Test func scoredMergesAreSentencePiece() async throws {
        let tokenizer = try await load("llama2")
        var generator = LineGenerator(seed: UInt64.random(in: 0...9999))
        // SentencePiece leaves out what is nothing but blanks, and ends a text at a zero byte.
        let lines = generator.lines(3000).filter { !$0.utf8.contains(0) && $0.utf8.contains { $0 != 0x20 } }
        let result = try await Oracle.shared.call(
            "pipelines.sentencepiece", ["lines": JSON(lines.map { .string($0) })])
        for (line, ids) in zip(lines, try #require(result.array)) {
            #expect(tokenizer.encode(line) == (try integers(ids)), "\(line.debugDescription)")
        }
    }
}
