import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

@Suite struct PromptTuningTests {
    private let model = SmallModel()

    @Test(arguments: [SmallModel(), .wideHeads]) func equalsItsFormula(model: SmallModel) async throws {
        let backbone = try model.backbone()
        let adapter = try adapter("prompt-tuning", ["num_virtual_tokens": 5], on: backbone)
        try adapter.randomise(seed: 3)
        try await SlotParity(model: model, method: "prompt").check(adapter, on: backbone)
    }

    @Test func blocksSeeVirtualTokensAndTheLossDoesNot() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens(length: 9)
        _ = try adapter("prompt-tuning", ["num_virtual_tokens": 6], on: backbone)
        var seen: [String: [Int]] = [:]
        var context = Context()
        context.observer = { seen[$0] = $1.shape }
        #expect(try backbone.logits(ids, context).shape == [2, 9, model.vocabulary])
        #expect(seen["model.layers.0"] == [2, 15, model.hidden])
        #expect(try backbone.hiddenStates(ids, Context()).shape == [2, 9, model.hidden])
    }

    @Test func generatesAndPacksAlike() throws {
        let backbone = try model.backbone()
        try adapter("prompt-tuning", ["num_virtual_tokens": 5], on: backbone).randomise(seed: 6)
        try expectGenerationAgrees(backbone, vocabulary: model.vocabulary)
        try expectPackingAgrees(backbone, vocabulary: model.vocabulary)
    }

    @Test func startsAsItIsTold() throws {
        let backbone = try model.backbone()
        func table(_ settings: KeyedList<JSON>) throws -> Tensor {
            let adapter = try adapter("prompt-tuning", settings, on: backbone)
            adapter.detach()
            return try adapter.tensor("prompt_embeddings").detached()
        }
        let sampled = try table(["num_virtual_tokens": 30, "prompt_tuning_init": "SAMPLE_VOCAB"])
        let embeddings = try backbone.embedding.table.values(dtype: .float32)
        for row in 0..<30 {
            let gaps = try (embeddings - sampled.selected(0, row)).absolute().sum([1])
            #expect(try callTensor("aten::min", gaps).item(as: Float.self) == 0)
        }
        let uniform = try table(["num_virtual_tokens": 64, "prompt_tuning_init": "UNIFORM"])
        let largest: Double = try uniform.absolute().maximum().item()
        #expect(largest <= 0.5 && largest > 0.49)
        let random: [Float] = try table(["num_virtual_tokens": 64, "prompt_tuning_init": "RANDOM"]).values()
        let square = random.reduce(0) { $0 + Double($1 * $1) } / Double(random.count)
        #expect(abs(square - 1) < 0.1)
        #expect(
            refusal { _ = try table(["prompt_tuning_init": "TEXT"]) }.hasPrefix("prompt_tuning_init_text: expected"))
        #expect(
            refusal { _ = try table(["prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x"]) }
                .hasPrefix("tokenizer_name_or_path: expected"))
    }

    /// The same rows as peft's, with the tokenizer of a real model.
    @Test func startsFromText() throws {
        let checkpoint = try Checkpoint("smollm2-135m")
        let backbone = try checkpoint.backbone(dtype: .bfloat16)
        let text = "Say which country it is."
        let adapter = try adapter(
            "prompt-tuning",
            [
                "num_virtual_tokens": 12, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": JSON(text),
                "tokenizer_name_or_path": "smollm2-135m",
            ], on: backbone)
        // "Say which country it is." is six tokens, of which twelve rows are two rounds.
        let rows = try adapter.tensor("prompt_embeddings").detached()
        let table = try backbone.embedding.table.values(dtype: .float32)
        let ids = try (0..<12).map { row in
            try callTensor("aten::argmin", (table - rows.selected(0, row)).absolute().sum([1])).item(as: Int.self)
        }
        #expect(Array(ids[0..<6]) == Array(ids[6..<12]) && Set(ids).count == 6)
        #expect(adapter.parameterCount == 12 * 576)
    }

    /// StarCoder2-7B has 4608 features, and 92,160 values with 20 tokens in a published table; T0-3B has 2048.
    @Test(arguments: [(4608, 20, 92_160), (2048, 10, 20_480), (2048, 100, 204_800)])
    func countsAsPublished(hidden: Int, tokens: Int, count: Int) throws {
        let model = SmallModel(
            hidden: hidden, heads: 1, keyValueHeads: 1, headDim: 4, layers: 1, intermediate: 4, isHollow: true)
        let adapter = try adapter("prompt-tuning", ["num_virtual_tokens": JSON(tokens)], on: model.backbone())
        #expect(adapter.parameterCount == count)
    }

    @Test(arguments: ["llama", "qwen3", "qwen2-tied"]) func foldersGoBothWays(kind: String) async throws {
        try await PromptExchange(
            kind: kind, peftType: "PROMPT_TUNING", method: "prompt-tuning",
            config: ["num_virtual_tokens": 5, "prompt_tuning_init": "RANDOM"]
        ).check()
    }
}
