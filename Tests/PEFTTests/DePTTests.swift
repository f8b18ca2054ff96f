import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

@Suite struct DePTTests {
    private let model = SmallModel()
    private static let small: KeyedList<JSON> = ["num_virtual_tokens": 4, "r": 3, "max_length": 20]

    @Test(arguments: [SmallModel(), .wideHeads]) func equalsItsFormula(model: SmallModel) async throws {
        let backbone = try model.backbone()
        let adapter = try adapter("dept", Self.small, on: backbone)
        try adapter.randomise(seed: 3)
        try await SlotParity(model: model, method: "dept", settings: ["alpha": 8]).check(adapter, on: backbone)
    }

    @Test func beginsAsPromptTuning() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let dept = try adapter("dept", Self.small, on: backbone)
        let found = try backbone.logits(ids)
        try nextTokenLoss(backbone, ids).backward()
        #expect(try isZero(#require(dept.tensor("dept_A").grad)))
        #expect(try !isZero(#require(dept.tensor("dept_B").grad)))
        try dept.descend(0.1)
        #expect(try !isZero(dept.tensor("dept_B")))
        dept.detach()
        _ = try adapter("prompt-tuning", ["num_virtual_tokens": 4], on: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: found))
    }

    /// What is added depends on the position alone and has rank r.
    @Test func theOffsetIsLowRankAndTheSameForEveryInput() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("dept", Self.small, on: backbone)
        try adapter.randomise(seed: 4)
        let slot = try #require(backbone.embedding.adapter)
        var stream = Seed(5).stream("inputs")
        let positions = try Tensor.arange(20).unsqueezed(0)
        let zeros = try Tensor.zeros([1, 20, model.hidden])
        let offset = try withoutGrad { try slot.embeddings(zeros, at: positions, in: Context()) }
        #expect(try numericalRank(offset.selected(0, 0)) == 3)
        let other = try Tensor.normal([2, 20, model.hidden], from: &stream)
        let shifted = try withoutGrad { try slot.embeddings(other, at: positions, in: Context()) }
        #expect(try relativeGap(shifted, other + offset) < 1e-6)
    }

    @Test(arguments: [
        (40, 45, 256, 76_800), (60, 30, 256, 76_800), (80, 15, 256, 76_800), (60, 24, 512, 76_800),
        (60, 30, 348, 79_560),
    ])
    func countsAsPublished(m: Int, r: Int, s: Int, count: Int) throws {
        let model = SmallModel(
            hidden: 768, heads: 1, keyValueHeads: 1, headDim: 4, layers: 1, intermediate: 4, vocabulary: 100,
            isHollow: true)
        let settings: KeyedList<JSON> = ["num_virtual_tokens": JSON(m), "r": JSON(r), "max_length": JSON(s)]
        #expect(try adapter("dept", settings, on: model.backbone()).parameterCount == count)
    }

    @Test func blocksSeeFewerTokens() throws {
        let backbone = try model.backbone()
        _ = try adapter("dept", Self.small, on: backbone)
        var seen: [Int] = []
        var context = Context()
        context.observer = { if $0 == "model.layers.0" { seen = $1.shape } }
        _ = try backbone.logits(model.tokens(length: 20), context)
        #expect(seen == [2, 24, model.hidden])
    }

    @Test func hasTwoLearningRates() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("dept", Self.small.with("offset_lr_ratio", 0), on: backbone)
        try adapter.randomise(seed: 6)
        let before = try adapter.trainables.map { try $0.tensor.detached().cloned() }
        try nextTokenLoss(backbone, model.tokens()).backward()
        try adapter.descend(0.1)
        for (trainable, old) in zip(adapter.trainables, before) {
            #expect(try trainable.tensor.isIdentical(to: old) == (trainable.name != "prompt_embeddings"))
        }
        let usual = try PEFTTests.adapter("dept", on: SmallModel().backbone())
        #expect(usual.trainables.map(\.learningRateFactor) == [1, 1.0 / 60, 1.0 / 60])
    }

    @Test func longRowsAreRefusedAndGeneratedTokensGoOn() throws {
        let backbone = try model.backbone()
        try adapter("dept", Self.small, on: backbone).randomise(seed: 7)
        let sentence = refusal { _ = try backbone.logits(model.tokens(length: 21)) }
        #expect(sentence.contains("21 tokens") && sentence.contains("max_length 20"))
        try expectGenerationAgrees(backbone, vocabulary: model.vocabulary)
        try expectPackingAgrees(backbone, vocabulary: model.vocabulary)
        // Beyond the table tokens are generated without an offset.
        let settings = GenerationSettings(maxTokens: 30)
        let one = try backbone.generateBatch(prompts: [[3, 5, 7]], settings: settings)
        #expect(one[0].tokens.count == 30)
        // What fills rows up does not count.
        var context = Context()
        context.length = 20
        #expect(try backbone.logits(model.tokens(length: 24), context).shape[1] == 24)
    }

    @Test func foldersComeBack() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter("dept", Self.small.with("alpha", 5), on: backbone)
        try adapter.randomise(seed: 8)
        let before = try backbone.logits(ids)
        let folder = try TemporaryFolder.lasting("dept")
        try adapter.save(to: folder("adapter"))
        adapter.detach()
        let loaded = try Adapter.load(from: folder("adapter"), onto: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        #expect(loaded.configuration.method.settings == adapter.configuration.method.settings)
    }
}

extension KeyedList<JSON> {
    fileprivate func with(_ key: String, _ value: JSON) -> KeyedList<JSON> {
        var result = self
        result[key] = value
        return result
    }
}
