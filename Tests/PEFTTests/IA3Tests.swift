import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

@Suite struct IA3Tests {
    @Test(arguments: [SmallModel(), .wideHeads, .multiHead])
    func equalsItsFormula(model: SmallModel) async throws {
        let backbone = try model.backbone()
        let adapter = try adapter("ia3", on: backbone)
        try adapter.randomise(seed: 3)
        try await SlotParity(model: model, method: "ia3", settings: ["feedforward_modules": ["down_proj"]])
            .check(adapter, on: backbone)
    }

    @Test func vectorsScaleRowsAndColumns() throws {
        let model = SmallModel()
        let backbone = try model.backbone()
        let adapter = try adapter("ia3", on: backbone)
        try adapter.randomise(seed: 4)
        #expect(adapter.updates.count == 3 * model.layers)
        for (layer, update) in adapter.updates {
            let vector = try adapter.tensor(layer.path + ".ia3_l").detached()
            let weight = layer.weight.frozen
            let merged = try update.merged(into: weight)
            let isDown = layer.role == .down
            #expect(vector.shape == (isDown ? [1, layer.inFeatures] : [layer.outFeatures, 1]))
            // By elements, without the broadcasting that the method relies on.
            let (values, scales, old): ([Float], [Float], [Float]) = (
                try merged.detached().values(), try vector.values(), try weight.values()
            )
            let columns = layer.inFeatures
            for index in values.indices {
                #expect(values[index] == old[index] * scales[isDown ? index % columns : index / columns])
            }
            // An input's scale leaves the bias as it is.
            let bias = try update.mergedBias(layer.bias?.frozen)
            if let own = layer.bias?.frozen, !isDown {
                #expect(try #require(bias).detached().isIdentical(to: own * vector.reshaped([-1])))
            } else {
                #expect(bias == nil)
            }
        }
    }

    @Test func mergedAnswersTheSameWithBiases() throws {
        let model = SmallModel()
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let plain = try backbone.logits(ids)
        let adapter = try adapter("ia3", on: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: plain))
        try adapter.randomise(seed: 5)
        let adapted = try backbone.logits(ids)
        try adapter.mergeIntoBackbone()
        #expect(try relativeGap(backbone.logits(ids), adapted) < 1e-5)
        try adapter.unmerge()
        #expect(try backbone.logits(ids).isIdentical(to: adapted))
        adapter.detach()
        #expect(try backbone.logits(ids).isIdentical(to: plain))
    }

    @Test func vectorsDoNotDecay() throws {
        for trainable in try adapter("ia3", on: SmallModel().backbone()).trainables {
            guard case .none = trainable.decay else {
                Issue.record("\(trainable.name) decays towards zero")
                continue
            }
        }
    }

    /// CodeLlama-7B has multi-head attention of width 4096 and MLPs of 11008, and 614,400 such values in a published
    /// table.
    @Test func countsAsPublished() throws {
        let large = SmallModel(
            hidden: 4096, heads: 32, keyValueHeads: 32, headDim: 128, layers: 32, intermediate: 11008, vocabulary: 4,
            isHollow: true)
        #expect(try adapter("ia3", on: large.backbone()).parameterCount == 614_400)
    }

    /// peft's own targets for a family are Graft's for llama and mistral; for others folders name them.
    @Test(arguments: ["llama", "llama-biases", "mistral"]) func foldersGoBothWays(kind: String) async throws {
        try await PromptExchange(kind: kind, peftType: "IA3", method: "ia3").check()
    }

    @Test(arguments: ["llama-biases", "qwen3", "qwen2-tied"]) func foldersWithOtherTargetsGoBothWays(kind: String)
        async throws
    {
        try await PromptExchange(
            kind: kind, peftType: "IA3", method: "ia3",
            config: ["target_modules": ["q_proj", "v_proj", "up_proj", "o_proj"], "feedforward_modules": ["o_proj"]]
        ).check()
    }

    /// Merged by Graft and by peft: the same weights and biases, and no others changed.
    @Test func mergesAsPeft() async throws {
        let model = try await TinyModels.shared.folder("llama-biases")
        let folder = try TemporaryFolder.lasting("ia3")
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let adapter = try adapter("ia3", on: backbone)
        try adapter.randomise(seed: 9)
        try adapter.save(to: folder("adapter"))
        let changed = try await Oracle.shared.call(
            "slots.merge",
            ["model_folder": JSON(model), "adapter_folder": JSON(folder("adapter")), "folder": JSON(folder("merged"))])
        let ours = try backbone.parameters.compactMap { parameter in
            try adapter.merged(parameter).map { (parameter.path, $0) }
        }
        // Weights of three layers a block, and the biases of keys and values.
        #expect(ours.map(\.0).sorted() == changed.array?.compactMap(\.string))
        #expect(ours.count == 5 * backbone.configuration.numHiddenLayers)
        // On disk as in memory.
        let merger = Merger(try Checkpoint(model), adapter: folder("adapter"))
        let report = try merger.write(to: folder("model"))
        #expect(report.changes.map(\.name).sorted() == ours.map(\.0).sorted())
        let comparison = try merger.verify(folder("model"), prompts: exampleTokens)
        #expect(comparison.largestDifference < 1e-5 * max(1, comparison.largestLogit))
        for (name, values) in ours {
            #expect(try bits(values) == bits(storedTensor(folder("merged"), name)), "\(name)")
        }
    }
}
