import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of MiSS and Bone must show; equality with the definitions is in `WeightParityTests`.
@Suite struct MiSSTests {
    private static let forms: [KeyedList<JSON>] = [
        ["r": 8], ["r": 7], ["r": 8, "init_weights": "mini", "mini_r": 4], ["r": 4, "init_weights": "bat"],
    ]
    private let model = SmallModel()

    @Test(arguments: forms.indices) func beginsAsTheFrozenModel(index: Int) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter("miss", Self.forms[index], on: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        // All of it learns at once.
        try nextTokenLoss(backbone, ids).backward()
        for trainable in adapter.trainables { #expect(try !isZero(#require(trainable.tensor.grad))) }
    }

    @Test(arguments: [8, 7, 30]) func shardsShareOneMatrix(width: Int) throws {
        let adapter = try adapter("miss", ["r": JSON(width), "target_modules": "all-linear"], on: model.backbone())
        try adapter.randomise(seed: 61)
        for (layer, update) in try adapter.lowRankUpdates() {
            let block: [Float] = try adapter.tensor(layer.path + ".miss_block").values()
            let dense = try update.dense()
            let found: [Float] = try dense.values()
            let outputs = layer.outFeatures
            for output in 0..<outputs {
                for input in 0..<layer.inFeatures {
                    #expect(found[output * layer.inFeatures + input] == block[input % width * outputs + output])
                }
            }
            #expect(try numericalRank(dense) == min(width, layer.inFeatures, outputs))
        }
    }

    @Test func miniHasTheSmallerRank() throws {
        let adapter = try adapter("miss", ["r": 8, "init_weights": "mini", "mini_r": 4], on: model.backbone())
        try adapter.randomise(seed: 62)
        for (_, update) in try adapter.lowRankUpdates() { #expect(try numericalRank(update.dense()) == 4) }
    }

    // MARK: - Bone depends on the weight

    private func update(_ adapter: Adapter, _ weight: Tensor) throws -> Tensor {
        try withoutGrad {
            let update = try #require(adapter.updates.first).update
            return try update.merged(into: weight) - weight
        }
    }

    @Test func boneScalesWithTheWeightAndMiSSDoesNot() throws {
        let backbone = try model.backbone()
        let weight = try #require(backbone.linears.first { $0.role == .query }).weight.frozen.to(dtype: .float64)
        let bone = try adapter("bone", ["r": 4], on: backbone)
        try bone.randomise(seed: 63)
        let blocks = try bone.tensor("q_proj.miss_block").detached().to(dtype: .float64)  // [8, 4, 4]
        // Row after row of blocks: what the weight adds, and what is added to every block.
        let fixed = try blocks.unsqueezed(2).expanded([8, 4, 8, 4]).reshaped([32, 32])
        let own = try update(bone, weight) - fixed
        #expect(try relativeGap(update(bone, weight * 2.0), own * 2.0 + fixed) < 1e-12)
        #expect(try relativeGap(update(bone, weight.zerosLike()), fixed) < 1e-12)
        // Two blocks of one row get the same matrix, and other updates.
        let row = try update(bone, weight).narrowed(0, start: 0, length: 4)
        #expect(try relativeGap(row.narrowed(1, start: 0, length: 4), row.narrowed(1, start: 4, length: 4)) > 0.1)
        bone.detach()
        let miss = try adapter("miss", ["r": 4], on: backbone)
        try miss.randomise(seed: 63)
        #expect(try relativeGap(update(miss, weight * 2.0), update(miss, weight)) < 1e-12)
    }

    @Test(arguments: forms.indices) func mergingAndBack(index: Int) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.parameters.map { try bits($0.frozen) }
        let adapter = try adapter("miss", Self.forms[index], on: backbone)
        try adapter.randomise(seed: 64, by: 0.1)
        let adapted = try backbone.logits(ids)
        let merged = try adapter.whileMerged { try backbone.logits(ids) }
        #expect(try relativeGap(merged, adapted) < 1e-5)
        adapter.detach()
        #expect(try backbone.parameters.map { try bits($0.frozen) } == before)
    }

    // MARK: - Counts

    @Test func countsAreThoseOfPeftsBenchmark() throws {
        // Llama-3.2-3B: queries of 3072, keys and values of 1024.
        let model = SmallModel(
            hidden: 3072, heads: 24, keyValueHeads: 8, headDim: 128, layers: 28, intermediate: 4, isHollow: true)
        func count(_ settings: KeyedList<JSON>) throws -> Int {
            let adapter = try adapter("miss", settings, on: model.backbone())
            #expect(adapter.trainables.count == adapter.updates.count)
            return adapter.parameterCount
        }
        #expect(try count([:]) == 7_340_032)
        #expect(try count(["init_weights": "bat"]) == 7_340_032)
        #expect(try count(["init_weights": "mini", "mini_r": 64]) == 229_376)
    }

    // MARK: - What does not fit

    @Test func shapesThatDoNotFitAreRefused() throws {
        func sentence(_ settings: KeyedList<JSON>) -> String {
            refusal { _ = try adapter("miss", settings, on: model.backbone()) }
        }
        #expect(sentence([:]) == "r: expected at most the 32 inputs of model.layers.0.self_attn.q_proj, found 64")
        let bat = sentence(["r": 6, "init_weights": "bat"])
        #expect(bat.hasPrefix("r: expected a divisor of 32 and 32") && bat.hasSuffix("is 1, 2, 4, 8, 16"))
        let mini = sentence(["r": 6, "init_weights": "mini", "mini_r": 5])
        #expect(mini.hasPrefix("mini_r: expected a divisor of 32,") && mini.hasSuffix("is 1, 2, 4, 8, 16"))
        #expect(
            sentence(["r": 4, "init_weights": "bat", "miss_dropout": 0.1]).hasPrefix("miss_dropout: init_weights bat"))
        #expect(
            sentence(["init_weights": "bone"]) == "init_weights: expected one of true, mini, bat, false, found \"bone\""
        )
    }
}

/// Folders of MiSS that peft writes and reads.
@Suite(.serialized) struct MiSSExchangeTests {
    private static let cases: [(kind: String, config: KeyedList<JSON>)] = [
        ("llama", ["r": 8, "target_modules": ["q_proj", "v_proj"]]),
        ("qwen2", ["r": 7, "target_modules": "all-linear", "bias": "MiSS_only", "miss_dropout": 0.1]),
        ("llama", ["r": 4, "init_weights": "bat", "target_modules": ["k_proj", "o_proj"]]),
        ("qwen3", ["r": 4, "init_weights": "bat", "target_modules": ["o_proj"], "layers_to_transform": [0, 2]]),
        ("mistral", ["r": 6, "init_weights": "mini", "mini_r": 4, "target_modules": ["q_proj", "o_proj"]]),
        (
            "llama-biases",
            [
                "r": 5, "init_weights": false, "bias": "all", "exclude_modules": ["q_proj"],
                "target_modules": ["q_proj", "v_proj"],
            ]
        ),
        ("llama", ["r": 8, "modules_to_save": ["lm_head"], "target_modules": ["v_proj"]]),
    ]

    @Test(arguments: cases.indices) func bothWays(index: Int) async throws {
        let (kind, config) = Self.cases[index]
        try await FolderExchange(method: "miss", peftType: "MISS", kind: kind, config: config, seed: index + 1).check()
    }
}
