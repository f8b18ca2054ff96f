import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Models and tables of replacements that a tokenizer.json brings, whole and broken.
struct ModelTests {
    private func load(_ json: JSON) throws -> Tokenizer {
        try withTemporaryFolder { folder in
            try folder.write(json.compact, to: "tokenizer.json")
            return try Tokenizer(folder: folder.path)
        }
    }

    private func file(_ model: JSON, normalizer: JSON = .null) -> JSON {
        [
            "version": "1.0", "added_tokens": JSON([]), "normalizer": normalizer, "pre_tokenizer": .null,
            "post_processor": .null, "decoder": .null, "model": model,
        ]
    }

    private static let unigram: JSON = [
        "type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [
            ["<unk>", 0.0], ["a", -1.0], ["b", -2.0], ["ab", -2.5], ["abc", -9.0], ["c", -2.0], ["\u{2581}", -1.0],
        ],
    ]

    @Test func theBestPathIsTaken() throws {
        let tokenizer = try load(file(Self.unigram))
        #expect(tokenizer.encode("ab") == [3])
        #expect(tokenizer.encode("abc") == [3, 5])
        #expect(tokenizer.encode("abxyza") == [3, 0, 1])
        #expect(tokenizer.encodeWithRanges("axéb").ranges == [0..<1, 1..<4, 4..<5])
        #expect(tokenizer.encode("").isEmpty)
    }

    @Test func unknownCharactersBecomeBytesWhereTheVocabularyHasThem() throws {
        var model = Self.unigram
        let vocabulary = try #require(model["vocab"]?.array)
        model["byte_fallback"] = true
        model["vocab"] = JSON(vocabulary + [["<0xC3>", 0.0], ["<0xA9>", 0.0]])
        let tokenizer = try load(file(model))
        #expect(tokenizer.encode("aéa") == [1, 7, 8, 1])
        #expect(tokenizer.encode("aéxa") == [1, 0, 1])
    }

    @Test func wordsAreCutGreedily() throws {
        let tokenizer = try load(
            file([
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 6,
                "vocab": ["[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "una": 4, "##é": 5, "##": 6],
            ]))
        #expect(tokenizer.encode("un") == [1])
        #expect(tokenizer.encode("unaff") == [0])
        #expect(tokenizer.encode("unable") == [0])
        #expect(tokenizer.encode("ununé") == [0])
        #expect(tokenizer.encode("unéaff") == [1, 5, 2])
        #expect(tokenizer.encodeWithRanges("unéaff").ranges == [0..<2, 2..<4, 4..<7])
        #expect(tokenizer.encode("unééééé") == [0])
    }

    @Test func aWholeWordIsATokenOrUnknown() throws {
        let tokenizer = try load(file(["type": "WordLevel", "unk_token": "?", "vocab": ["?": 0, "ab": 1, "a": 2]]))
        #expect(tokenizer.encode("ab") == [1])
        #expect(tokenizer.encode("abc") == [0])
    }

    @Test func mistakesAreNamed() throws {
        func unigram(_ key: String, _ value: JSON) -> JSON {
            var model = Self.unigram
            model[key] = value
            return model
        }
        let cases: [(String, JSON)] = [
            ("model.unk_id", unigram("unk_id", .null)),
            ("model.unk_id", unigram("unk_id", 7)),
            ("model.vocab", unigram("vocab", "a")),
            ("model.vocab[1]", unigram("vocab", [["<unk>", 0.0], ["a"]])),
            ("model.vocab[0]", unigram("vocab", [["<unk>", "b"]])),
            ("model.unk_token", ["type": "WordPiece", "unk_token": "x", "vocab": ["a": 0]]),
            ("model.unk_token", ["type": "WordLevel", "unk_token": "x", "vocab": ["a": 0]]),
            ("'Markov' is not supported", ["type": "Markov"]),
        ]
        for (part, model) in cases {
            do {
                _ = try load(file(model))
                Issue.record("no error about \(part)")
            } catch {
                #expect("\(error)".contains(part) && "\(error)".contains("tokenizer.json"), "\(error)")
            }
        }
    }

    /// T5's table with bytes changed or cut off: refused, or used without harm.
    @Test func brokenTablesOfReplacementsDoNoHarm() async throws {
        let folder = try #require(try await Oracle.shared.call("pipelines.folder", ["name": "t5"]).string)
        let whole = try JSON.parse(Data(contentsOf: URL(fileURLWithPath: folder + "/tokenizer.json")))
        let text = try #require(whole["normalizer"]?["precompiled_charsmap"]?.string)
        let table = try #require(Data(base64Encoded: text))
        var random = SeededGenerator(seed: UInt64.random(in: 0...9999))
        var generator = LineGenerator(seed: 5)
        let lines = generator.lines(10)
        var refused = 0
        for _ in 0..<150 {
            var broken = table
            // The size of the tree, its first units and the rest are hit alike.
            let reach = [4, 1024, broken.count][Int.random(in: 0..<3, using: &random)]
            for _ in 0..<Int.random(in: 1...20, using: &random) {
                broken[Int.random(in: 0..<reach, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            if Bool.random(using: &random) { broken = broken.prefix(Int.random(in: 0...broken.count, using: &random)) }
            let normalizer: JSON = [
                "type": "Precompiled", "precompiled_charsmap": .string(broken.base64EncodedString()),
            ]
            do {
                let tokenizer = try load(file(Self.unigram, normalizer: normalizer))
                for line in lines { _ = tokenizer.encodeWithRanges(line) }
            } catch is TokenizerError {
                refused += 1
            }
        }
        #expect(refused > 20)
        #expect(throws: TokenizerError.self) {
            try load(file(Self.unigram, normalizer: ["type": "Precompiled", "precompiled_charsmap": "?"]))
        }
    }
}
