import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

@Suite struct BottleneckTests {
    private let model = SmallModel()
    /// What each published form reads, for the oracle's formula.
    static let forms: [(name: String, formula: KeyedList<JSON>)] = [
        ("houlsby", ["adapter_input": "output", "non_linearity": "gelu", "scale": 1]),
        ("pfeiffer", ["adapter_input": "sum", "non_linearity": "relu", "scale": 1]),
        ("parallel-adapter", ["adapter_input": "input", "non_linearity": "relu", "scale": 4]),
        ("adaptformer", ["adapter_input": "stream", "non_linearity": "relu", "scale": 0.1]),
    ]
    static let boosted: [(name: String, formula: KeyedList<JSON>)] = [
        ("capaboost-adapter", ["adapter_input": "output", "non_linearity": "relu", "scale": 1]),
        ("capaboost-padapter", ["adapter_input": "sum", "non_linearity": "relu", "scale": 1]),
    ]

    @Test(arguments: forms.indices, [SmallModel(), .wideHeads])
    func equalsItsFormula(form: Int, model: SmallModel) async throws {
        let (name, formula) = Self.forms[form]
        let backbone = try model.backbone()
        let adapter = try adapter(name, ["r": 5], on: backbone)
        try adapter.randomise(seed: 3)
        try await SlotParity(model: model, method: "bottleneck", settings: formula).check(adapter, on: backbone)
    }

    @Test(arguments: boosted.indices, [2, 3]) func masksAreThoseOfTheRule(form: Int, branches: Int) async throws {
        let (name, formula) = Self.boosted[form]
        let backbone = try model.backbone()
        let adapter = try adapter(
            name, ["r": 4, "num_layer": JSON(branches), "density": 0.4, "mask_seed": 12], on: backbone)
        try adapter.randomise(seed: 4)
        var settings = formula
        settings["num_layer"] = JSON(branches)
        let parity = SlotParity(
            model: model, method: "bottleneck", settings: settings, constants: try masks(adapter, branches, 0.4))
        try await parity.check(adapter, on: backbone)
    }

    /// The masks of every weight, drawn step by step as the rule says.
    private func masks(_ adapter: Adapter, _ branches: Int, _ density: Double) throws -> KeyedList<Tensor> {
        var masks = KeyedList<Tensor>()
        for trainable in adapter.trainables where trainable.name.hasSuffix(".weight") {
            let path = trainable.name.dropFirst("base_model.model.".count).dropLast(".weight".count)
            for branch in 0..<branches {
                var stream = Seed(12).stream("\(path).mask.\(branch)")
                let count = trainable.tensor.count
                var mask = [Float](repeating: 0, count: count)
                for index in stream.permutation(count).prefix(Int(density * Double(count))) { mask[index] = 1 }
                masks["\(path).mask.\(branch)"] = try Tensor(mask, shape: trainable.tensor.shape)
            }
        }
        return masks
    }

    /// Whether the model is the pretrained one at first: exactly, or nearly for the forms with normal weights.
    @Test(arguments: ["parallel-adapter", "adaptformer"]) func beginsAsThePretrainedModel(name: String) throws {
        let backbone = try model.backbone()
        let before = try backbone.logits(model.tokens())
        _ = try adapter(name, on: backbone)
        #expect(try backbone.logits(model.tokens()).isIdentical(to: before))
    }

    @Test(arguments: ["houlsby", "pfeiffer", "capaboost-adapter", "capaboost-padapter"])
    func beginsNearThePretrainedModel(name: String) throws {
        let backbone = try model.backbone()
        let before = try backbone.logits(model.tokens())
        let first = try adapter(name, ["r": 8], on: backbone)
        let gap = try relativeGap(backbone.logits(model.tokens()), before)
        #expect(gap > 0 && gap < 0.05)
        first.detach()
        var zero: KeyedList<JSON> = ["r": 8, "init_weights": "zero_up"]
        // A norm that is trained runs through other kernels.
        if name == "houlsby" { zero["train_norms"] = false }
        _ = try adapter(name, zero, on: backbone)
        #expect(try backbone.logits(model.tokens()).isIdentical(to: before))
    }

    @Test(arguments: ["pfeiffer", "capaboost-padapter"]) func bothWeightsZeroAreRefused(name: String) throws {
        let sentence = refusal { _ = try adapter(name, ["init_std": 0], on: model.backbone()) }
        #expect(sentence.contains("both weights of a bottleneck zero"))
        #expect(
            refusal { _ = try adapter(name, ["attention_adapter": .null, "mlp_adapter": .null], on: model.backbone()) }
                .contains("both null"))
        #expect(
            refusal { _ = try adapter(name, ["r": .null, "reduction_factor": 64], on: model.backbone()) }
                .hasPrefix("reduction_factor:"))
    }

    /// What the refusal is for: with both weights zero only the upper bias ever learns.
    @Test func bothWeightsZeroHaveNoGradient() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("houlsby", ["r": 4, "train_norms": false], on: backbone)
        for trainable in adapter.trainables { try withoutGrad { try trainable.tensor.fill(0) } }
        try nextTokenLoss(backbone, model.tokens()).backward()
        for trainable in adapter.trainables {
            let gradient = try #require(trainable.tensor.grad)
            #expect(try isZero(gradient) == !trainable.name.hasSuffix("adapter_up.bias"), "\(trainable.name)")
        }
    }

    @Test func oneBranchWithoutMasksIsThePlainAdapter() throws {
        let (first, second) = (try model.backbone(), try model.backbone())
        let boosted = try adapter("capaboost-padapter", ["num_layer": 1, "density": 1, "r": 6], on: first)
        let plain = try adapter("pfeiffer", ["r": 6], on: second)
        #expect(boosted.trainables.map(\.name) == plain.trainables.map(\.name))
        for (a, b) in zip(boosted.trainables, plain.trainables) { #expect(try a.tensor.isIdentical(to: b.tensor)) }
        for adapter in [boosted, plain] { try adapter.randomise(seed: 5) }
        #expect(try first.logits(model.tokens()).isIdentical(to: second.logits(model.tokens())))
    }

    /// Entries that no branch sees stay where they started, and a shared weight's gradient is the sum over branches.
    @Test func unseenEntriesStay() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("capaboost-padapter", ["r": 4, "mask_seed": 12], on: backbone)
        let masks = try masks(adapter, 2, 0.5)
        let before = try adapter.trainables.map { try $0.tensor.detached().cloned() }
        for _ in 0..<2 {
            try nextTokenLoss(backbone, model.tokens()).backward()
            try adapter.descend(0.5)
        }
        for (trainable, old) in zip(adapter.trainables, before) where trainable.name.hasSuffix(".weight") {
            let path = trainable.name.dropFirst("base_model.model.".count).dropLast(".weight".count)
            let seen: [Float] = try (#require(masks["\(path).mask.0"]) + #require(masks["\(path).mask.1"])).values()
            let moved: [Float] = try (trainable.tensor.detached() - old).values()
            #expect(zip(moved, seen).allSatisfy { $0 == 0 || $1 > 0 })
            #expect(moved.contains { $0 != 0 })
        }
    }

    @Test func countsAndFilesAreThoseOfTheFormula() throws {
        // RoBERTa-large: published as 0.8M each.
        let large = SmallModel(
            hidden: 1024, heads: 16, keyValueHeads: 16, headDim: 64, layers: 24, intermediate: 4, vocabulary: 4,
            isHollow: true)
        let counts: [(String, KeyedList<JSON>, Int)] = [
            ("pfeiffer", ["r": 16], 811_392), ("houlsby", ["r": 8, "train_norms": false], 835_968),
            ("houlsby", ["r": 8], 835_968 + 2 * 24 * 1024),
        ]
        for (name, settings, count) in counts {
            #expect(try adapter(name, settings, on: large.backbone()).parameterCount == count)
        }
        // AdaptFormer's is ViT-B's: 12 blocks of 768 features with 64 inside, less the biases of nothing.
        let base = SmallModel(
            hidden: 768, heads: 12, keyValueHeads: 12, headDim: 64, layers: 12, intermediate: 4, vocabulary: 4,
            isHollow: true)
        #expect(try adapter("adaptformer", on: base.backbone()).parameterCount == 1_189_632)
        for name in ["capaboost-adapter", "capaboost-padapter"] {
            let one = try adapter(name, ["r": 32, "num_layer": 1], on: base.backbone()).parameterCount
            #expect(try adapter(name, ["r": 32, "num_layer": 5], on: base.backbone()).parameterCount == one)
        }
        try withTemporaryFolder { folder in
            let adapter = try adapter("pfeiffer", ["r": 7], on: model.backbone())
            try adapter.save(to: folder("adapter"))
            let file = try SafetensorsFile(path: folder("adapter") + "/adapter_model.safetensors")
            let bytes = file.tensors.reduce(0) { $0 + $1.value.bytes.count }
            #expect(bytes == 4 * adapter.parameterCount)
        }
    }

    @Test(arguments: forms.map(\.name) + boosted.map(\.name)) func generatesAndPacksAlike(name: String) throws {
        let backbone = try model.backbone()
        try adapter(name, on: backbone).randomise(seed: 6)
        try expectGenerationAgrees(backbone, vocabulary: model.vocabulary)
        try expectPackingAgrees(backbone, vocabulary: model.vocabulary)
    }

    @Test func layersToTransformChoosesBlocks() throws {
        let adapter = try adapter("houlsby", ["layers_to_transform": 1], on: model.backbone())
        #expect(adapter.trainables.allSatisfy { $0.name.contains("layers.1.") } && !adapter.trainables.isEmpty)
    }

    @Test func mergingIsRefused() throws {
        for name in ["pfeiffer", "capaboost-adapter", "prefix-tuning", "prompt-tuning", "dept"] {
            let adapter = try adapter(name, on: model.backbone())
            #expect(!refusal { try adapter.mergeIntoBackbone() }.isEmpty, "\(name)")
        }
    }
}
