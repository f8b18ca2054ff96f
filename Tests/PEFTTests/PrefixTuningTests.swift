import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

@Suite struct PrefixTuningTests {
    private let model = SmallModel()

    /// The oracle mixes attention to the tokens with attention to the prefix: `(1 - lambda) A + lambda P`.
    @Test(arguments: [SmallModel(), .wideHeads, .multiHead], [false, true])
    func equalsTheMixture(model: SmallModel, gate: Bool) async throws {
        let backbone = try model.backbone()
        let adapter = try adapter(
            "prefix-tuning", ["num_virtual_tokens": 5, "prefix_gate": JSON(gate)], on: backbone)
        try adapter.randomise(seed: 3)
        try await SlotParity(model: model, method: "prefix").check(adapter, on: backbone)
    }

    @Test(arguments: [SmallModel(), .wideHeads]) func projectionEqualsItsFormula(model: SmallModel) async throws {
        let backbone = try model.backbone()
        let settings: KeyedList<JSON> = [
            "num_virtual_tokens": 3, "prefix_projection": true, "encoder_hidden_size": 11,
        ]
        let adapter = try adapter("prefix-tuning", settings, on: backbone)
        try adapter.randomise(seed: 4)
        try await SlotParity(model: model, method: "prefix").check(adapter, on: backbone)
        // What is saved is the table, which answers the same and can be trained on.
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let folder = try TemporaryFolder.lasting("prefix")
        try adapter.save(to: folder("adapter"))
        adapter.detach()
        let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
        #expect(loaded.trainables.map(\.name) == ["prompt_embeddings"])
        #expect(try relativeGap(backbone.logits(ids), before) < 1e-6)
        try nextTokenLoss(backbone, ids).backward()
        #expect(try !isZero(#require(loaded.trainables[0].tensor.grad)))
    }

    @Test func theGateBeginsAsThePretrainedModel() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let gated = try adapter("prefix-tuning", ["prefix_gate": true], on: backbone)
        // Positions begin behind the prefix, which rotations turn into rounding alone.
        #expect(try relativeGap(backbone.logits(ids), before) < 1e-5)
        try nextTokenLoss(backbone, ids).backward()
        #expect(try !isZero(#require(gated.tensor("prefix_gate").grad)))
        gated.detach()
        // Zero keys are no keys to softmax: they take their share.
        _ = try adapter("prefix-tuning", ["init_weights": "zero"], on: backbone)
        #expect(try relativeGap(backbone.logits(ids), before) > 1e-2)
    }

    @Test func queriesAreNoLonger() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens(length: 9)
        _ = try adapter("prefix-tuning", ["num_virtual_tokens": 6], on: backbone)
        var seen: [String: [Int]] = [:]
        var context = Context()
        context.observer = { seen[$0] = $1.shape }
        #expect(try backbone.logits(ids, context).shape == [2, 9, model.vocabulary])
        #expect(seen["model.layers.0.self_attn"] == [2, model.heads, 9, model.headDim])
        #expect(seen["model.layers.1.self_attn.q_proj"] == [2, 9, model.heads * model.headDim])
    }

    @Test(arguments: [["prefix_gate": true], ["num_virtual_tokens": 4]] as [KeyedList<JSON>])
    func generatesAndPacksAlike(settings: KeyedList<JSON>) throws {
        let backbone = try model.backbone()
        try adapter("prefix-tuning", settings, on: backbone).randomise(seed: 6)
        try expectGenerationAgrees(backbone, vocabulary: model.vocabulary)
        try expectPackingAgrees(backbone, vocabulary: model.vocabulary)
    }

    @Test func countsTheTable() throws {
        let width = model.keyValueHeads * model.headDim
        func count(_ settings: KeyedList<JSON>) throws -> Int {
            try adapter("prefix-tuning", settings, on: model.backbone()).parameterCount
        }
        let table = 2 * model.layers * 7 * width
        #expect(try count(["num_virtual_tokens": 7]) == table)
        #expect(try count(["num_virtual_tokens": 7, "prefix_gate": true]) == table + model.layers)
        let network = 7 * width + 13 * width + 13 + 2 * model.layers * (width * 13 + width)
        #expect(
            try count(["num_virtual_tokens": 7, "prefix_projection": true, "encoder_hidden_size": 13]) == network)
        let folder = try TemporaryFolder.lasting("prefix")
        let saved = try adapter("prefix-tuning", ["num_virtual_tokens": 7], on: model.backbone())
        try saved.save(to: folder("adapter"))
        let file = try SafetensorsFile(path: folder("adapter") + "/adapter_model.safetensors")
        #expect(file.tensors.reduce(0) { $0 + $1.value.bytes.count } == 4 * table)
    }

    @Test(arguments: ["llama", "qwen3", "llama-head-dim", "qwen2-tied"]) func foldersGoBothWays(kind: String)
        async throws
    {
        try await PromptExchange(
            kind: kind, peftType: "PREFIX_TUNING", method: "prefix-tuning", config: ["num_virtual_tokens": 5]
        ).check()
    }

    @Test func projectedFoldersGoBothWays() async throws {
        try await PromptExchange(
            kind: "llama", peftType: "PREFIX_TUNING", method: "prefix-tuning",
            config: ["num_virtual_tokens": 4, "prefix_projection": true, "encoder_hidden_size": 7],
            forgotten: ["prefix_projection"]
        ).check()
    }

    @Test func anotherModelsPrefixIsRefused() throws {
        let folder = try TemporaryFolder.lasting("prefix")
        try adapter("prefix-tuning", on: model.backbone()).save(to: folder("adapter"))
        let sentence = refusal { _ = try Adapter.load(from: folder("adapter"), onto: SmallModel.multiHead.backbone()) }
        #expect(sentence.contains("token_dim") || sentence.contains("num_attention_heads"), "\(sentence)")
    }
}
