import Backbones
import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Torch

/// A tiny model with quantised matrices, held as blocks and unpacked.
private func twins(
    _ kind: String, quantisation: String, layers: Int = 3
) async throws -> (packed: any Backbone, plain: any Backbone) {
    let sizes: JSON = [
        "num_hidden_layers": JSON(layers),
        "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    ]
    let folder = try await TinyModels.shared.folder(kind, seed: 61, options: ["overrides": sizes])
    let file = try TemporaryFolder.lasting("packed-model")("model.gguf")
    _ = try await Oracle.shared.call(
        "backbones.make_gguf", ["folder": JSON(folder), "path": JSON(file), "quantisation": JSON(quantisation)])
    let checkpoint = try Checkpoint(file)
    #expect(try checkpoint.hasBlocks)
    return (try checkpoint.backbone(dtype: .float32, form: .multipliedBlocks), try checkpoint.backbone(dtype: .float32))
}

/// The hidden states of a prompt and of tokens that come after it one by one, `[1, time, hidden]`.
private func decoded(
    _ backbone: any Backbone, prompt: [Int], tokens: [Int], changes: (inout Context) -> Void = { _ in }
) throws -> Tensor {
    try withoutGrad {
        let cache = backbone.makeCache(capacity: prompt.count + tokens.count)
        var context = Context(cache: cache)
        changes(&context)
        var states: [Tensor] = []
        if !prompt.isEmpty { states.append(try backbone.hiddenStates(tensor([prompt]), context)) }
        for token in tokens { states.append(try backbone.hiddenStates(tensor([[token]]), context)) }
        return try Tensor.concatenate(states, dimension: 1)
    }
}

/// The length of the difference over the length of the second, in float64.
private func relativeError(_ a: Tensor, _ b: Tensor) throws -> Double {
    try rootMeanSquare(a, b) / b.to(dtype: .float64).squared().mean().squareRoot().item()
}

/// Adds a multiple of the layer's own product.
private final class Doubling: LinearAdapter {
    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        try linear.base(input) * 2
    }
}

@Suite struct PackedModelTests {
    /// A model of blocks computes what the unpacked one does, but for the rounding of vectors to 8 bits; the decoder
    /// of single tokens computes what the blocks do one operator at a time.
    @Test(
        arguments: ["llama", "llama-tied", "mistral", "qwen2", "qwen3"], ["Q8_0", "Q4_1"])
    func equalsTheUnpackedModel(kind: String, quantisation: String) async throws {
        let (packed, plain) = try await twins(kind, quantisation: quantisation)
        var random = SeededGenerator(seed: 62)
        let ids = random.tokens(rows: 1, length: 60, vocabulary: 97)[0]
        #expect(packed.parameters.map(\.frozen.shape) == plain.parameters.map(\.frozen.shape))
        let logits = try withoutGrad { (try packed.logits(tensor([ids])), try plain.logits(tensor([ids]))) }
        let error = try relativeError(logits.0, logits.1)
        #expect(error < 0.05)

        let (prompt, tokens) = (Array(ids[..<20]), Array(ids[20...]))
        let fused = try decoded(packed, prompt: prompt, tokens: tokens)
        // An observer sees every module, which the fused way cannot show.
        var seen = 0
        let stepwise = try decoded(packed, prompt: prompt, tokens: tokens) { $0.observer = { _, _ in seen += 1 } }
        #expect(seen > tokens.count * 10)
        #expect(try relativeError(fused, stepwise) < 0.02)
        let rounding = try relativeError(fused, decoded(plain, prompt: prompt, tokens: tokens))
        #expect(rounding < 0.05)
        // In two halves, the second one after what is in the cache already.
        let halves = try withoutGrad {
            let context = Context(cache: packed.makeCache(capacity: ids.count))
            return try Tensor.concatenate(
                [Array(ids[..<23]), Array(ids[23...])].map { try packed.hiddenStates(tensor([$0]), context) },
                dimension: 1)
        }
        #expect(try relativeError(halves, stepwise) < 0.02)
        // From an empty cache as well.
        let unread = try (decoded(packed, prompt: [], tokens: ids), decoded(plain, prompt: [], tokens: ids))
        #expect(try relativeError(unread.0, unread.1) < 0.05)
    }

    /// In one block, where hardly a vector is rounded to other codes, the fused way is the way by operators to the
    /// rounding of fp32.
    @Test(arguments: ["llama", "mistral", "qwen2", "qwen3"])
    func equalsTheOperators(kind: String) async throws {
        let (packed, _) = try await twins(kind, quantisation: "Q8_0", layers: 1)
        var random = SeededGenerator(seed: 64)
        let ids = random.tokens(rows: 1, length: 61, vocabulary: 97)[0]
        let (prompt, tokens) = (Array(ids[..<30]), Array(ids[30...]))
        let fused = try decoded(packed, prompt: prompt, tokens: tokens)
        let stepwise = try decoded(packed, prompt: prompt, tokens: tokens) { $0.observer = { _, _ in } }
        let errors = try ids.indices.map { index in
            try relativeError(
                fused.narrowed(1, start: index, length: 1), stepwise.narrowed(1, start: index, length: 1))
        }
        #expect(errors[..<30].sorted()[20] < 2e-6, "reading: \(errors[..<30])")
        #expect(errors[30...].sorted()[20] < 2e-6, "writing: \(errors[30...])")
    }

    /// The same bits on any number of threads.
    @Test func doesNotDependOnThreads() async throws {
        let (packed, _) = try await twins("llama", quantisation: "Q4_1")
        let threads = try Machine.threads()
        defer { try? Machine.setThreads(threads) }
        var results: [[Float]] = []
        for count in [1, 2, 3] {
            try Machine.setThreads(count)
            results.append(try decoded(packed, prompt: [1, 2, 3], tokens: Array(4..<24)).values())
        }
        #expect(results[0] == results[1] && results[0] == results[2])
    }

    /// Adapters, replaced weights and gradients act as on an unpacked model.
    @Test func takesAdaptersAndReplacements() async throws {
        let (packed, plain) = try await twins("llama", quantisation: "Q8_0")
        let ids = Array(5..<30)
        let before = try decoded(packed, prompt: [1, 2], tokens: ids)
        for backbone in [packed, plain] { backbone.linears[1].adapter = Doubling() }
        let adapted = try decoded(packed, prompt: [1, 2], tokens: ids)
        #expect(try relativeError(adapted, before) > 0.05)
        #expect(try relativeError(adapted, decoded(plain, prompt: [1, 2], tokens: ids)) < 0.02)
        #expect(try decoded(packed, prompt: [1, 2], tokens: ids) { $0.usesAdapters = false }.shape == before.shape)
        for backbone in [packed, plain] { backbone.linears[1].adapter = nil }
        #expect(try decoded(packed, prompt: [1, 2], tokens: ids).isIdentical(to: before))

        for backbone in [packed, plain] {
            backbone.linears[3].weight.replacement = try plain.linears[3].weight.values(dtype: .float32) * 3
        }
        let replaced = try decoded(packed, prompt: [1, 2], tokens: ids)
        #expect(try relativeError(replaced, before) > 0.05)
        #expect(try relativeError(replaced, decoded(plain, prompt: [1, 2], tokens: ids)) < 0.02)

        let (mine, other) = (packed.linears[0], plain.linears[0])
        #expect(try mine.weight.values(dtype: .float32).isIdentical(to: other.weight.frozen))
        let input = try Tensor.ones([3, mine.inFeatures]).requiringGrad()
        try mine.base(input).squared().sum().backward()
        let twin = try Tensor.ones([3, mine.inFeatures]).requiringGrad()
        try other.base(twin).squared().sum().backward()
        let gradients = (try #require(input.grad), try #require(twin.grad))
        #expect(try relativeError(gradients.0, gradients.1) < 1e-6)
    }

    /// The frozen tensor of a packed parameter holds no values, and nothing can be computed with it unnoticed.
    @Test func placeholdersAreNoNumbers() async throws {
        let (packed, plain) = try await twins("llama", quantisation: "Q4_1")
        let weight = packed.linears[0].weight
        #expect(weight.packed != nil && plain.linears[0].weight.packed == nil)
        #expect(try !weight.frozen.isAllFinite())
        #expect(packed.parameterCount == plain.parameterCount)
    }

    /// SmolLM2 from its blocks: logits within the error of 8-bit vectors, nearly always the same token first.
    @Test func smolLM2() throws {
        let path = try RepositoryPaths.required(RepositoryPaths.smolLM2)
        let tokenizer = try Tokenizer(gguf: GGUFFile(path: path))
        let text = """
            The Rhine is one of the major European rivers. It begins in the Swiss Alps and flows through Switzerland, \
            Liechtenstein, Austria, Germany, France and the Netherlands before it reaches the North Sea. Along the way \
            lie Basel, Strasbourg, Mannheim, Mainz, Koblenz, Bonn, Cologne and Rotterdam. Romans called it Rhenus; for \
            centuries it was the border of their empire. Today it carries more goods than any other river of Europe, \
            and its castles and vineyards bring millions of visitors every year. def area(radius): return 3.14159 * \
            radius ** 2. In 1995 its water rose to eleven metres at Cologne, and people went through the streets by boat.
            """
        let ids = tokenizer.encode(text)
        #expect(ids.count > 150)
        let checkpoint = try Checkpoint(path)
        let packed = try checkpoint.backbone(dtype: .float32, form: .multipliedBlocks)
        let plain = try checkpoint.backbone(dtype: .float32)
        let (logits, expected) = try withoutGrad { (try packed.logits(tensor([ids])), try plain.logits(tensor([ids]))) }
        let error = try relativeError(logits, expected)
        let first: [Int] = try callTensor("aten::argmax", logits, -1, false).values()
        let wanted: [Int] = try callTensor("aten::argmax", expected, -1, false).values()
        let same = zip(first, wanted).filter { $0 == $1 }.count
        #expect(error < 0.03, "the logits are off by \(error) of their length")
        #expect(same * 100 >= ids.count * 95, "\(same) of \(ids.count) tokens are the same")

        // Greedy text: each token that the fused way chooses is the one that the way by operators (several rows at once)
        // finds best after the same text, or as good as that within what rounding a vector to 8 bits can turn over.
        let prompt = Array(ids.prefix(40))
        var settings = GenerationSettings(maxTokens: 40)
        settings.stopsAtEndOfText = false
        let stream = try TokenStream(packed, prompt: prompt, settings: settings)
        var chosen: [Int] = []
        while let token = try stream.next() { chosen.append(token) }
        #expect(chosen.count == 40)
        let row = prompt + chosen.dropLast()
        let scores = try withoutGrad {
            try packed.logits(tensor([row, row])).selected(0, 1).narrowed(0, start: prompt.count - 1, length: 40)
        }
        let best: [Int] = try callTensor("aten::argmax", scores, -1, false).values()
        for (place, token) in chosen.enumerated() where best[place] != token {
            let found = try scores.selected(0, place)
            let gap: Float = try (found.selected(0, best[place]) - found.selected(0, token)).item()
            #expect(gap < 0.2, "token \(place) is \(gap) below the best")
        }
        #expect(zip(best, chosen).count { $0 == $1 } >= 36)
    }
}
