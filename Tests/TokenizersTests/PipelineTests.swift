import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Every component of tokenizer.json beside the reference, on fresh text.
struct PipelineTests {
    @Test(arguments: Pipeline.models + Pipeline.normalizers + Pipeline.preTokenizers + Pipeline.others)
    func tokensTypesAndPlacesAreTheReference(pipeline: Pipeline) async throws {
        try await withPipeline(pipeline) { tokenizer, folder in
            let lines = Self.lines(tokenizer, seed: 52, count: 120)
            for (line, reference) in zip(lines, try await wholeEncodings(folder, lines)) {
                let encoding = tokenizer.encodeWithRanges(line, addSpecialTokens: true, trimmingBlanks: true)
                #expect(encoding.ids == reference.ids, "\(line.debugDescription)")
                #expect(tokenizer.encode(line, addSpecialTokens: true) == encoding.ids)
                guard encoding.ids == reference.ids else { continue }
                #expect(encoding.typeIDs == reference.types)
                #expect(widened(encoding.ranges, in: line) == reference.ranges, "\(line.debugDescription)")
            }
            let pairs = Array(lines.reversed()[..<30])
            let expected = try await wholeEncodings(folder, Array(lines[..<30]), pairs)
            for (index, reference) in expected.enumerated() {
                let encoding = tokenizer.encodeWithRanges(lines[index], pair: pairs[index], trimmingBlanks: true)
                #expect(encoding.ids == reference.ids)
                #expect(encoding.typeIDs == reference.types)
            }
        }
    }

    @Test(arguments: Pipeline.models + Pipeline.others)
    func decodingAtOnceAndInPartsIsTheReference(pipeline: Pipeline) async throws {
        try await withPipeline(pipeline) { tokenizer, folder in
            var random = SeededGenerator(seed: 53)
            var sequences = Self.lines(tokenizer, seed: 54, count: 60).map { tokenizer.encode($0) }.filter {
                !$0.isEmpty
            }
            for _ in 0..<200 {
                sequences.append(
                    (0..<Int.random(in: 1...20, using: &random)).map { _ in
                        Int.random(in: 0..<tokenizer.vocabularySize, using: &random)
                    })
            }
            for skips in [false, true] {
                let result = try await Oracle.shared.call(
                    "tokenizers.decode",
                    [
                        "path": .string(folder), "sequences": JSON(tokens: sequences),
                        "skip_special_tokens": JSON(skips),
                    ])
                for (ids, expected) in zip(sequences, try strings(result)) {
                    #expect(isSame(try tokenizer.decode(ids, skipSpecialTokens: skips), expected), "\(ids)")
                    var stream = tokenizer.makeStreamingDecoder(skipSpecialTokens: skips)
                    let parts = try ids.map { try stream.append($0) }
                    #expect(isSame(parts.joined() + stream.finish(), expected), "\(ids)")
                }
            }
        }
    }

    /// Every scalar of Unicode through every normalizer.
    @Test(arguments: Pipeline.normalizers.dropLast())
    func everyScalarIsNormalisedAsInTheReference(pipeline: Pipeline) async throws {
        try await withPipeline(pipeline) { tokenizer, folder in
            let lines = Self.scalarLines(oneIn: 20, pipeline)
            var wrong: [String] = []
            for start in stride(from: 0, to: lines.count, by: 400) {
                let part = Array(lines[start..<min(start + 400, lines.count)])
                let result = try await Oracle.shared.call(
                    "tokenizers.normalize", ["path": .string(folder), "lines": JSON(part.map { .string($0) })])
                for (line, expected) in zip(part, try strings(result)) {
                    if isSame(tokenizer.normalizedText(line), expected) { continue }
                    wrong.append(line)
                }
            }
            #expect(wrong.isEmpty, "\(wrong.count) lines differ: \(wrong.prefix(40).map(scalarNumbers))")
        }
    }

    /// Every scalar of Unicode through every pre-tokenizer that looks at single characters.
    @Test(arguments: Pipeline.preTokenizers + Pipeline.models[1...4])
    func everyScalarIsCutAsInTheReference(pipeline: Pipeline) async throws {
        try await withPipeline(pipeline) { tokenizer, folder in
            let lines = Self.scalarLines(oneIn: 60, pipeline)
            var wrong: [String] = []
            for start in stride(from: 0, to: lines.count, by: 400) {
                let part = Array(lines[start..<min(start + 400, lines.count)])
                let result = try await Oracle.shared.call(
                    "tokenizers.split", ["path": .string(folder), "lines": JSON(part.map { .string($0) })])
                for (line, expected) in zip(part, try #require(result.array)) {
                    let bounds = try integers(expected)
                    let cuts = stride(from: 0, to: bounds.count, by: 2).map { bounds[$0]..<bounds[$0 + 1] }
                    if widened(tokenizer.pieces(of: line), in: line) != cuts { wrong.append(line) }
                }
            }
            #expect(wrong.isEmpty, "\(wrong.count) lines differ: \(wrong.prefix(40).map(scalarNumbers))")
        }
    }

    /// Every scalar of Unicode, and ordinary lines, through expressions of Oniguruma that PCRE2 reads differently.
    @Test(arguments: Pipeline.expressions)
    func expressionsMatchAsInTheReference(pattern: String) async throws {
        try await everyScalarIsCutAsInTheReference(
            pipeline: Pipeline(name: pattern, preTokenizer: Pipeline.split(pattern, "Isolated")))
    }

    @Test func badExpressionsAreRefusedAsInTheReference() async throws {
        let patterns = [
            "(", ")", "a(b", "[", "[a", "*a", "a|*", "a{2,1}", "\\", "[a-\\d]", "[z-a]", "\\p{Foo}", "\\p{IsAlpha}",
            "(?P<a>b)", "(?R)", "(?a)x", "[[:foo:]]", "\\x{110000}x", "(?<a", "(?i", "\\p", "[]", "a**", "x{2}{3}",
            "\\xZ",
        ]
        let accepted = try #require(
            try await Oracle.shared.call("tokenizers.accepts", ["patterns": JSON(patterns.map { .string($0) })]).array)
        for (pattern, isAccepted) in zip(patterns, accepted) where isAccepted.bool == false {
            #expect(throws: TokenizerError.self, "\(pattern)") { try Self.splitter(pattern) }
        }
        let error = #expect(throws: TokenizerError.self) { try Self.splitter("a(b") }
        #expect(error?.description.contains("\"pre_tokenizer.pattern\"") ?? false)
        #expect(error?.description.contains("'a(b'") ?? false)
    }

    /// An expression that backtracks without end gives up, and the text stays whole.
    @Test(.timeLimit(.minutes(10)))
    func aHostileExpressionEnds() throws {
        let text = String(repeating: "a", count: 5000) + "!"
        #expect(try Self.splitter(#"(a+)+(a+)+(a+)+$"#).pieces(of: text) == [0..<5001])
        #expect(try Self.splitter(#"(?:(a|aa)+)+b"#).pieces(of: text) == [0..<5001])
        #expect(try Self.splitter(#"(x(?:y|(z))*)*"#).pieces(of: "xyzxyz").count > 0)
    }

    private static func splitter(_ pattern: String) throws -> Tokenizer {
        let json: JSON = [
            "added_tokens": [], "normalizer": nil, "pre_tokenizer": Pipeline.split(pattern), "post_processor": nil,
            "decoder": nil, "model": ["type": "BPE", "vocab": ["a": 0], "merges": []],
        ]
        return try withTemporaryFolder { folder in
            try folder.write(json.compact, to: "tokenizer.json")
            return try Tokenizer(folder: folder.path)
        }
    }

    @Test func bytesThatAreNoTextAreReplacedAsPythonDoes() async throws {
        var random = SeededGenerator(seed: 55)
        let interesting: [UInt8] = [0x41, 0x80, 0xBF, 0xC2, 0xE0, 0xA0, 0xED, 0xF0, 0x90, 0xF4, 0x8F, 0xFF, 0xC0, 0x20]
        let samples = (0..<400).map { _ in
            (0..<Int.random(in: 0...12, using: &random)).map { _ in
                interesting[Int.random(in: interesting.indices, using: &random)]
            }
        }
        let result = try await Oracle.shared.call(
            "tokenizers.replace_bytes", ["samples": JSON(tokens: samples.map { $0.map(Int.init) })])
        for (bytes, expected) in zip(samples, try strings(result)) {
            #expect(isSame(Tokenizer.text(of: bytes), expected), "\(bytes)")
        }
    }

    // MARK: Support

    /// The lines of one scalar in so many, others for every pipeline, and of all that are special beyond their kind; the
    /// lines of all scalars, which take minutes, with GRAFT_EVERY_SCALAR in the environment.
    private static func scalarLines(oneIn share: Int, _ pipeline: Pipeline) -> [String] {
        guard ProcessInfo.processInfo.environment["GRAFT_EVERY_SCALAR"] == nil else { return allScalarLines }
        let offset = pipeline.name.utf8.reduce(0) { ($0 * 31 + Int($1)) % share }
        return allScalarLines.enumerated().filter { $0.offset % share == offset || $0.offset < 0x180 }.map(\.element)
    }

    /// Lines of a few scalars each, alone and between others; what behaves alike is sampled.
    private static let allScalarLines: [String] = {
        var lines: [String] = []
        for value in 0...UInt32(0x10FFFF) {
            guard let scalar = Unicode.Scalar(value) else { continue }
            let isSampled =
                value < 0x3400 || (0xA000..<0xAC00).contains(value) || (0xF900..<0x20000).contains(value)
                || (0x2F800..<0x2FA20).contains(value) || (0xE0000..<0xE0200).contains(value)
            guard isSampled && scalar.properties.age != nil || value % 997 == 0 else { continue }
            var line = String.UnicodeScalarView()
            line.append(contentsOf: ["a", scalar, "b", " ", scalar, scalar, "\u{301}", "."])
            lines.append(String(line))
        }
        return lines
    }()

    private func scalarNumbers(_ line: String) -> String {
        String(Array(line.unicodeScalars)[1].value, radix: 16)
    }

    private static func lines(_ tokenizer: Tokenizer, seed: UInt64, count: Int) -> [String] {
        var tokens = tokenizer.addedTokens.map(\.content)
        tokens += tokens.flatMap { ["x" + $0, $0 + " ", " \u{3000}" + $0, " " + $0 + "\n ", $0.uppercased()] }
        var generator = LineGenerator(seed: seed, specials: tokens)
        return generator.lines(count)
    }

    private func withPipeline(
        _ pipeline: Pipeline, _ body: (Tokenizer, String) async throws -> Void
    ) async throws {
        try await withTemporaryFolder { folder in
            var generator = LineGenerator(seed: 51)
            _ = try await Oracle.shared.call(
                "tokenizers.compose",
                [
                    "path": .string(folder.path), "lines": JSON(generator.lines(300).map { .string($0) }), "size": 1500,
                    "components": pipeline.components, "options": pipeline.options, "added": pipeline.added,
                ])
            try await body(try Tokenizer(folder: folder.path), folder.path)
        }
    }
}
