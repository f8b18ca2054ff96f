import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Encoding and decoding with SmolLM2's tokenizer beside the reference implementation.
struct EncodingTests {
    private func generator(_ tokenizer: Tokenizer, seed: UInt64) -> LineGenerator {
        LineGenerator(seed: seed, specials: tokenizer.addedTokens.map(\.content))
    }

    @Test(arguments: [1, 2, 3, 4] as [UInt64])
    func tokensAndTheirPlacesAreTheReference(seed: UInt64) async throws {
        let tokenizer = try await smolLM2.value
        var generator = generator(tokenizer, seed: seed)
        let lines = generator.lines(1500)
        let expected = try await referenceEncodings(RepositoryPaths.smolLM2, lines)
        try #require(expected.count == lines.count)
        for (line, reference) in zip(lines, expected) {
            let encoding = tokenizer.encodeWithRanges(line)
            #expect(encoding.ids == reference.ids, "\(line.debugDescription)")
            #expect(tokenizer.encode(line) == encoding.ids)
            // The reference loses count of places after a byte that the vocabulary cannot write.
            guard encoding.ids.count == reference.ids.count, isWritable(line, tokenizer) else { continue }
            #expect(widened(encoding.ranges, in: line) == reference.ranges, "\(line.debugDescription)")
        }
    }

    /// Every scalar of Unicode, alone and between a letter, a blank and a digit.
    @Test func everyScalarIsSplitAsInTheReference() async throws {
        let tokenizer = try await smolLM2.value
        var lines: [String] = []
        var line = ""
        for value in 0...UInt32(0x10FFFF) {
            guard let scalar = Unicode.Scalar(value) else { continue }
            // Private use and most ideographs and syllables behave alike: a sample of them is enough.
            let isSampled = value < 0x3400 || (0xA000..<0xAC00).contains(value) || (0xF900..<0x20000).contains(value)
            guard isSampled || value % 61 == 0 || (0x2A600..<0x32500).contains(value) && value % 3 == 0 else {
                continue
            }
            line.unicodeScalars.append(contentsOf: ["a", scalar, "1", scalar, " ", scalar, "!", scalar, scalar])
            if line.utf8.count > 2000 {
                lines.append(line)
                line = ""
            }
        }
        lines.append(line)
        let expected = try await referenceEncodings(RepositoryPaths.smolLM2, lines, ranges: false)
        for (line, reference) in zip(lines, expected) where tokenizer.encode(line) != reference.ids {
            Issue.record("a line that begins with \(line.unicodeScalars.prefix(2).map(\.value)) differs")
        }
    }

    /// Whether the vocabulary has all bytes of a text: SmolLM2's lacks some control characters and the first bytes of
    /// some rare planes, which both implementations drop.
    private func isWritable(_ text: String, _ tokenizer: Tokenizer) -> Bool {
        !text.utf8.contains { [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2].contains($0) }
    }

    @Test func decodingGivesTheTextBack() async throws {
        let tokenizer = try await smolLM2.value
        var generator = generator(tokenizer, seed: 11)
        for line in generator.lines(2000) where isWritable(line, tokenizer) {
            #expect(isSame(try tokenizer.decode(tokenizer.encode(line)), line), "\(line.debugDescription)")
            let ranges = tokenizer.encodeWithRanges(line).ranges
            #expect(zip(ranges, ranges.dropFirst()).allSatisfy { $0.upperBound == $1.lowerBound })
            #expect(ranges.first?.lowerBound ?? 0 == 0 && ranges.last?.upperBound ?? 0 == line.utf8.count)
        }
    }

    @Test(arguments: [false, true])
    func decodingArbitraryTokensIsTheReference(skipSpecialTokens: Bool) async throws {
        let tokenizer = try await smolLM2.value
        var random = SeededGenerator(seed: 5)
        // Single bytes and specials are frequent, so that broken characters and their neighbours occur.
        let sequences = (0..<1500).map { _ in
            (0..<Int.random(in: 0...24, using: &random)).map { _ in
                Int.random(in: 0..<(Bool.random(using: &random) ? 280 : tokenizer.vocabularySize), using: &random)
            }
        }
        let result = try await Oracle.shared.call(
            "tokenizers.decode",
            [
                "path": .string(RepositoryPaths.smolLM2),
                "sequences": JSON(sequences.map { JSON($0.map { JSON($0) }) }),
                "skip_special_tokens": JSON(skipSpecialTokens),
            ])
        for (ids, expected) in zip(sequences, try strings(result)) {
            let decoded = try tokenizer.decode(ids, skipSpecialTokens: skipSpecialTokens)
            #expect(isSame(decoded, expected), "\(ids)")
            var stream = tokenizer.makeStreamingDecoder(skipSpecialTokens: skipSpecialTokens)
            var parts = try ids.map { try stream.append($0) }
            parts.append(stream.finish())
            #expect(isSame(parts.joined(), expected), "\(ids)")
        }
    }

    @Test func streamingNeverGivesOutHalfACharacter() async throws {
        let tokenizer = try await smolLM2.value
        let text = "👩‍👩‍👧‍👦 你好 𝕏 नमस्ते é 🏳️‍🌈"
        var stream = tokenizer.makeStreamingDecoder()
        var output = ""
        for id in tokenizer.encode(text) {
            let part = try stream.append(id)
            #expect(!part.unicodeScalars.contains("\u{FFFD}"))
            output += part
        }
        #expect(isSame(output + stream.finish(), text))
    }

    @Test func anUnknownNumberIsAnError() async throws {
        let tokenizer = try await smolLM2.value
        #expect(throws: TokenizerError("token 49152 is not in the vocabulary, which has the numbers 0 to 49151")) {
            try tokenizer.decode([49152])
        }
        #expect(throws: TokenizerError.self) { try tokenizer.decode([-1]) }
    }

    @Test func theModelsSpecialTokensAreKnown() async throws {
        let tokenizer = try await smolLM2.value
        #expect(tokenizer.vocabularySize == 49152)
        #expect(tokenizer.specialTokens == SpecialTokens(bos: 1, eos: 2, pad: 2, unk: 0))
        #expect(tokenizer.stopTokenIDs == [2])
        #expect(!tokenizer.addsBOS && !tokenizer.addsEOS)
        #expect(tokenizer.addedTokens.map(\.id) == Array(0...16))
        #expect(tokenizer.id(of: "<|im_end|>") == 2 && tokenizer.token(2) == "<|im_end|>")
        #expect(tokenizer.encode("a<|im_end|>b").contains(2))
        #expect(tokenizer.encode("12 345", addSpecialTokens: true) == tokenizer.encode("12 345"))
        #expect(tokenizer.encode("2024").count == 4)
    }

    @Test func encodingFromManyTasksAtOnceIsTheSame() async throws {
        let tokenizer = try await smolLM2.value
        var generator = generator(tokenizer, seed: 21)
        let lines = generator.lines(400)
        let expected = lines.map { tokenizer.encode($0) }
        try await withThrowingTaskGroup(of: Bool.self) { group in
            for _ in 0..<4 { group.addTask { lines.map { tokenizer.encode($0) } == expected } }
            for try await isEqual in group { #expect(isEqual) }
        }
    }

    /// A megabyte without a place to cut must not take quadratic time, which would be hours.
    @Test(.timeLimit(.minutes(10)))
    func aLongPieceIsEncodedInTime() async throws {
        let tokenizer = try await smolLM2.value
        var random = SeededGenerator(seed: 3)
        let text = String(
            decoding: (0..<1_000_000).map { _ in UInt8.random(in: 97...122, using: &random) }, as: UTF8.self)
        let ids = tokenizer.encode(text)
        #expect(try tokenizer.decode(ids) == text)
        let start = String(text.prefix(100_000))
        #expect(tokenizer.encode(start) == (try await referenceEncodings(RepositoryPaths.smolLM2, [start]))[0].ids)
    }
}
