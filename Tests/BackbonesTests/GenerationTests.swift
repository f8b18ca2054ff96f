import Backbones
import Formats
import TestSupport
import Testing
import Tokenizers
import Torch

@Suite struct GenerationTests {
    /// The tokens that transformers generates, its own stop token included.
    private func reference(
        _ folder: String, _ ids: [Int], count: Int, penalty: Double = 1, stops: [Int] = []
    ) async throws -> [Int] {
        let rows = try await Oracle.shared.call(
            "models.generate_greedy",
            [
                "folder": JSON(folder), "ids": JSON(tokens: [ids]), "n": JSON(count),
                "repetition_penalty": JSON(penalty), "eos": stops.isEmpty ? .null : JSON(stops.map { JSON($0) }),
            ])
        return rows[0]?.array?.compactMap(\.int) ?? []
    }

    private func tokens(
        _ backbone: any Backbone, _ prompt: [Int], _ settings: GenerationSettings
    ) throws -> (tokens: [Int], reason: StopReason?) {
        let stream = try TokenStream(backbone, prompt: prompt, settings: settings)
        var tokens: [Int] = []
        while let token = try stream.next() { tokens.append(token) }
        #expect(try stream.next() == nil)
        return (tokens, stream.stopReason)
    }

    @Test(arguments: kinds, [1.0, 1.4])
    func greedyEqualsTransformers(kind: String, penalty: Double) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 11)
        var random = SeededGenerator(seed: 31)
        let prompt = random.tokens(rows: 1, length: 9, vocabulary: 97)[0]
        let expected = try await reference(folder, prompt, count: 20, penalty: penalty)
        let settings = GenerationSettings(maxTokens: 20, repetitionPenalty: penalty)
        let found = try tokens(load(folder), prompt, settings)
        #expect(found.tokens == expected)
        #expect(found.reason == .maxTokens)
        #expect(Set(expected).count > 3)
    }

    @Test func stopTokensEndTheText() async throws {
        let folder = try await TinyModels.shared.folder("llama", seed: 11)
        let backbone = try load(folder)
        let prompt = [3, 14, 15, 92, 6]
        let all = try await reference(folder, prompt, count: 20)
        let stop = all[6]
        let expected = try await reference(folder, prompt, count: 20, stops: [stop, 1000])
        let settings = GenerationSettings(maxTokens: 20, stopTokenIDs: [stop, 1000])
        let found = try tokens(backbone, prompt, settings)
        #expect(found.tokens + [stop] == expected)
        #expect(found.reason == .stopToken(stop))
    }

    @Test(arguments: ["llama", "mistral", "qwen2-sliding"], [1, 3, 8, 40])
    func promptInChunks(kind: String, chunk: Int) async throws {
        let backbone = try load(try await TinyModels.shared.folder(kind, seed: 11))
        var random = SeededGenerator(seed: 32)
        let prompt = random.tokens(rows: 1, length: 40, vocabulary: 97)[0]
        let whole = try tokens(backbone, prompt, GenerationSettings(maxTokens: 12))
        let parts = try tokens(backbone, prompt, GenerationSettings(maxTokens: 12, prefillTokens: chunk))
        #expect(parts.tokens == whole.tokens)
    }

    @Test func sameSeedSameTokens() async throws {
        let backbone = try load(try await TinyModels.shared.folder("qwen3", seed: 11))
        func sampled(_ seed: UInt64) throws -> [Int] {
            try tokens(backbone, [5, 6, 7], GenerationSettings(maxTokens: 30, temperature: 1.5, seed: Seed(seed)))
                .tokens
        }
        #expect(try sampled(1) == sampled(1))
        #expect(try sampled(1) != sampled(2))
    }

    @Test func contextIsALimit() async throws {
        // 256 positions.
        let backbone = try load(try await TinyModels.shared.folder("llama", seed: 11))
        var random = SeededGenerator(seed: 33)
        let prompt = random.tokens(rows: 1, length: 300, vocabulary: 97)[0]
        let full = try tokens(backbone, Array(prompt[..<250]), GenerationSettings(maxTokens: 20))
        #expect(full.tokens.count == 6)
        #expect(full.reason == .contextFull)
        let exact = try tokens(backbone, Array(prompt[..<250]), GenerationSettings(maxTokens: 6))
        #expect(exact.reason == .maxTokens)
        let long = message { _ = try TokenStream(backbone, prompt: Array(prompt[..<256])) }
        #expect(long?.contains("256 tokens") == true && long?.contains("shorten") == true)
        #expect(message { _ = try TokenStream(backbone, prompt: []) }?.contains("no tokens") == true)
        #expect(message { _ = try TokenStream(backbone, prompt: [1, 97]) }?.contains("vocabulary has 97") == true)
        #expect(message { _ = try TokenStream(backbone, prompt: [-1]) }?.contains("token -1") == true)
        #expect(message { _ = try backbone.generateBatch(prompts: [[1], []]) }?.contains("no tokens") == true)
    }

    /// Rows of different lengths that stop at different times, greedy and sampled, in chunks and whole.
    @Test(arguments: ["llama", "mistral", "qwen2-sliding", "qwen3-sliding", "llama3"], [0, 1.2])
    func batchEqualsOneByOne(kind: String, temperature: Double) async throws {
        let backbone = try load(try await TinyModels.shared.folder(kind, seed: 11))
        var random = SeededGenerator(seed: 34)
        let prompts = [7, 21, 1, 12, 12, 3, 16, 9].map { random.tokens(rows: 1, length: $0, vocabulary: 97)[0] }
        var settings = GenerationSettings(
            maxTokens: 25, temperature: temperature, repetitionPenalty: 1.1, seed: Seed(3))
        let free = try backbone.generateBatch(prompts: prompts, settings: settings)
        // Tokens that rows choose early and late.
        settings.stopTokenIDs = Set(
            free.enumerated().compactMap { $0.offset % 3 == 1 ? nil : $0.element.tokens[$0.offset * 2] })
        settings.prefillTokens = 8
        let batch = try backbone.generateBatch(prompts: prompts, settings: settings)
        var lengths: Set<Int> = []
        for (prompt, result) in zip(prompts, batch) {
            let alone = try tokens(backbone, prompt, settings)
            #expect(result.tokens == alone.tokens)
            #expect(result.stopReason == alone.reason)
            lengths.insert(result.tokens.count)
        }
        #expect(lengths.count > 2)
        #expect(try backbone.generateBatch(prompts: []).isEmpty)
    }

    @Test func batchOfEqualLengths() async throws {
        let backbone = try load(try await TinyModels.shared.folder("mistral", seed: 11))
        var random = SeededGenerator(seed: 35)
        let prompts = random.tokens(rows: 4, length: 10, vocabulary: 97)
        let settings = GenerationSettings(maxTokens: 15)
        let batch = try backbone.generateBatch(prompts: prompts, settings: settings)
        #expect(try batch.map(\.tokens) == prompts.map { try tokens(backbone, $0, settings).tokens })
    }

    /// A row whose context is full stops alone.
    @Test func batchAtTheLimit() async throws {
        let backbone = try load(try await TinyModels.shared.folder("llama", seed: 11))
        var random = SeededGenerator(seed: 36)
        let prompts = [252, 30].map { random.tokens(rows: 1, length: $0, vocabulary: 97)[0] }
        let settings = GenerationSettings(maxTokens: 12)
        let batch = try backbone.generateBatch(prompts: prompts, settings: settings)
        #expect(batch.map(\.tokens.count) == [4, 12])
        #expect(batch.map(\.stopReason) == [.contextFull, .maxTokens])
        #expect(try batch.map(\.tokens) == prompts.map { try tokens(backbone, $0, settings).tokens })
    }
}

/// Text of a random model with SmolLM2's vocabulary: whatever it writes must come out whole.
@Suite struct TextGeneratorTests {
    private func generator() async throws -> (TextGenerator, Tokenizer) {
        let tokenizer = try Tokenizer(gguf: GGUFFile(path: RepositoryPaths.required(RepositoryPaths.smolLM2)))
        let folder = try await TinyModels.shared.folder(
            "llama", seed: 41, options: ["overrides": ["vocab_size": 49152, "num_hidden_layers": 2]])
        return (TextGenerator(try load(folder), tokenizer: tokenizer), tokenizer)
    }

    @Test func piecesJoinToTheText() async throws {
        let (generator, tokenizer) = try await generator()
        for seed in 0..<8 {
            let settings = GenerationSettings(
                maxTokens: 60, temperature: 3, stopsAtEndOfText: false, seed: Seed(UInt64(seed)))
            var pieces: [String] = []
            let result = try generator.generate("Once upon", settings: settings) {
                pieces.append($0)
                return true
            }
            #expect(result.tokens.count == 60)
            #expect(pieces.joined() == result.text)
            #expect(try result.text == tokenizer.decode(result.tokens, skipSpecialTokens: true))
            #expect(!pieces.contains(""))
            #expect(pieces.count > 30)
            #expect(result.report.promptTokens == tokenizer.encode("Once upon").count)
            #expect(result.report.generatedTokens == 60)
            #expect(result.report.stopReason == .maxTokens)
            #expect(result.report.secondsToFirstToken > 0)
            #expect(result.report.seconds > result.report.secondsToFirstToken)
            #expect(result.report.tokensPerSecond > 0)
        }
    }

    @Test func stopStringsEndTheText() async throws {
        let (generator, _) = try await generator()
        var settings = GenerationSettings(maxTokens: 40, temperature: 1, stopsAtEndOfText: false, seed: Seed(9))
        let whole = try generator.generate([1, 2, 3], settings: settings)
        // A string that begins and ends within tokens.
        let scalars = Array(whole.text.unicodeScalars)
        let stop = String(String.UnicodeScalarView(scalars[30..<37]))
        settings.stopStrings = ["never written", stop]
        var streamed = ""
        let cut = try generator.generate([1, 2, 3], settings: settings) {
            streamed += $0
            return true
        }
        #expect(cut.report.stopReason == .stopString(stop))
        #expect(whole.text.utf8.starts(with: (cut.text + stop).utf8))
        #expect(!cut.text.contains(stop))
        #expect(streamed == cut.text)
        #expect(whole.tokens.starts(with: cut.tokens))
        #expect(cut.tokens.count < whole.tokens.count)
    }

    @Test func receiverCanCancel() async throws {
        let (generator, _) = try await generator()
        let settings = GenerationSettings(maxTokens: 40, temperature: 1, stopsAtEndOfText: false)
        var pieces = 0
        let result = try generator.generate([5, 6], settings: settings) { _ in
            pieces += 1
            return pieces < 3
        }
        #expect(pieces == 3)
        #expect(result.report.stopReason == .cancelled)
        #expect(result.tokens.count < 15)
    }

    @Test func endOfTextTokensStop() async throws {
        let (generator, tokenizer) = try await generator()
        let stops = tokenizer.stopTokenIDs
        #expect(!stops.isEmpty)
        let settings = GenerationSettings(maxTokens: 200, temperature: 1, stopTokenIDs: Set(0..<3000))
        let result = try generator.generate([7, 8, 9], settings: settings)
        guard case .stopToken(let id) = result.report.stopReason else {
            Issue.record("ended by \(result.report.stopReason)")
            return
        }
        #expect(id < 3000 || stops.contains(id))
        #expect(!result.tokens.contains(id))
    }

    @Test func errorsOfTheReceiverPassThrough() async throws {
        struct Full: Error {}
        let (generator, _) = try await generator()
        #expect(throws: Full.self) { try generator.generate([5, 6]) { _ in throw Full() } }
    }
}
