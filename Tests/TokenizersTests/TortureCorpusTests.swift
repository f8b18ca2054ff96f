import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Whole pipelines beside the reference implementation, on text that is meant to break them.
struct TortureCorpusTests {
    static let corpus = Task {
        var specials: [String] = []
        for name in pipelines {
            specials += try strings(await Oracle.shared.call("pipelines.special_tokens", ["name": .string(name)]))
        }
        let names = Set(specials).subtracting((0..<98).map { "<extra_id_\($0)>" }).sorted()
        return TortureCorpus(seed: UInt64.random(in: 0...9999), count: 10_500, specials: names)
    }

    static let pipelines = ["gpt2", "llama3", "qwen2", "smollm2", "bert", "roberta", "t5", "llama2"]

    @Test("Tokenizer ids equal reference on a torture corpus", arguments: pipelines)
    func tokenizerIDsEqualReference(pipeline: String) async throws {
        let corpus = try await Self.corpus.value
        let tokenizer = try await Self.tokenizer(pipeline)
        for special in [false, true] {
            // All lines as they are, and some with the tokens that the pipeline puts around a text.
            let lines = special ? Array(corpus.lines.prefix(1000)) : corpus.lines
            let expected = try await Self.reference(pipeline, lines, special: special)
            try #require(expected.count == lines.count)
            var differences = 0
            for (line, reference) in zip(lines, expected) where differences < 5 {
                guard let difference = try compare(line, reference, tokenizer, special: special) else { continue }
                differences += 1
                Issue.record("\(pipeline), \(String(decoding: line, as: UTF8.self).debugDescription): \(difference)")
            }
        }
    }

    /// The first difference between what Graft and the reference make of a line, or nil.
    private func compare(
        _ line: [UInt8], _ reference: ReferenceLine, _ tokenizer: Tokenizer, special: Bool
    ) throws -> String? {
        let text = Tokenizer.text(of: line)
        let encoding = tokenizer.encodeWithRanges(text, addSpecialTokens: special, trimmingBlanks: true)
        guard encoding.ids == reference.ids else { return "ids are \(encoding.ids), expected \(reference.ids)" }
        guard tokenizer.encode(text, addSpecialTokens: special) == reference.ids else {
            return "ids without places differ from those with them"
        }
        let ranges = widened(encoding.ranges, in: text)
        guard ranges == reference.ranges || !isWritable(text, tokenizer) else {
            return "places are \(ranges), expected \(reference.ranges)"
        }
        for (skip, expected) in [(false, reference.decoded), (true, reference.decodedWithoutSpecials)] {
            let decoded = Array(try tokenizer.decode(reference.ids, skipSpecialTokens: skip).utf8)
            guard decoded == expected else { return "decoded to \(decoded), expected \(expected)" }
            var stream = tokenizer.makeStreamingDecoder(skipSpecialTokens: skip)
            var streamed = try reference.ids.reduce(into: "") { $0 += try stream.append($1) }
            streamed += stream.finish()
            guard Array(streamed.utf8) == expected else { return "streamed \(streamed), expected \(expected)" }
        }
        return nil
    }

    /// Whether the vocabulary has all bytes of a text: the reference loses count of places where it drops one.
    private func isWritable(_ text: String, _ tokenizer: Tokenizer) -> Bool {
        guard tokenizer.modelName == "BPE", tokenizer.vocabularySize == 49152 else { return true }
        return !text.utf8.contains { [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2].contains($0) }
    }

    private static func tokenizer(_ pipeline: String) async throws -> Tokenizer {
        if pipeline == "smollm2" { return try await smolLM2.value }
        let folder = try #require(
            try await Oracle.shared.call("pipelines.folder", ["name": .string(pipeline)]).string)
        return try Tokenizer(folder: folder)
    }

    static func reference(
        _ pipeline: String, _ lines: [[UInt8]], special: Bool
    ) async throws -> [ReferenceLine] {
        try await withTemporaryFolder { folder in
            let input = try folder.write(TortureCorpus(lines: lines).file, to: "lines")
            let answer = folder.path + "/answer"
            _ = try await Oracle.shared.call(
                "pipelines.reference",
                [
                    "name": .string(pipeline), "lines": .string(input), "answer": .string(answer),
                    "special": JSON(special),
                ])
            return ReferenceLine.read(try Data(contentsOf: URL(fileURLWithPath: answer)))
        }
    }
}
