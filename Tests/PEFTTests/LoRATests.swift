import Backbones
import Formats
import PEFT
import Testing
import Torch

/// What a test of LoRA and its variants must show.
@Suite struct LoRATests {
    private let model = SmallModel()
    private static let variants = ["lora", "rslora", "dora", "pissa", "olora"]

    // MARK: - 1. The start

    @Test(arguments: variants) func theFirstOutputIsTheFrozenModels(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        _ = try adapter(name, ["r": 4, "target_modules": "all-linear"], on: backbone)
        let after = try backbone.logits(ids)
        if name == "lora" || name == "rslora" {
            #expect(try after.isIdentical(to: before))
        } else {
            #expect(try relativeGap(after, before) < 1e-5)
        }
    }

    @Test(arguments: ["gaussian", "orthogonal"]) func otherStartsAreNeutralToo(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter("lora", ["init_lora_weights": JSON(name)], on: backbone)
        #expect(try relativeGap(backbone.logits(ids), before) < 1e-5)
        #expect(try isZero(adapter.tensor("lora_B.weight")) == (name == "gaussian"))
        let sentence = refusal {
            _ = try PEFTTests.adapter("lora", ["init_lora_weights": "orthogonal", "r": 3], on: model.backbone())
        }
        #expect(sentence.contains("orthogonal needs an even rank"))
    }

    @Test func theFirstFactorIsUniformWithinTheRootOfTheInputs() throws {
        let a = try adapter("lora", ["r": 64], on: SmallModel(hidden: 256, headDim: 64).backbone()).tensor(
            "lora_A.weight")
        let bound = 1.0 / 16
        let largest: Double = try a.absolute().maximum().item()
        #expect(largest <= bound && largest > 0.999 * bound)
        // The deviation of a uniform distribution is its bound over the root of three.
        let deviation: Double = try a.squared().mean().squareRoot().item()
        #expect(abs(deviation / (bound / 3.0.squareRoot()) - 1) < 0.02)
    }

    // MARK: - 2. Merging

    @Test(arguments: variants) func mergedAndFactoredFormsAgreeAndUnmergingRestoresTheWeight(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(name, ["r": 3, "lora_alpha": 5, "target_modules": "all-linear"], on: backbone)
        try adapter.randomise(seed: 11)
        let adapted = try backbone.logits(ids)
        let merged = try adapter.whileMerged { try backbone.logits(ids) }
        #expect(try relativeGap(merged, adapted) < 1e-5)
        for (layer, _) in adapter.updates {
            let (down, up) = try exportedFactors(adapter, layer)
            let scale = name == "rslora" ? 5 / 3.0.squareRoot() : 5.0 / 3
            let update = try up.matmul(down) * scale
            var restored = try #require(try adapter.merged(layer.weight, pretrained: layer.weight.frozen))
            if name == "dora" {
                // W' = diag(m / n) (W + dW) with the norms from before the merge.
                let norms = try (layer.weight.frozen + update).norm([1])
                restored = try restored * (norms / magnitude(adapter, layer)).unsqueezed(1)
            }
            #expect(try relativeGap(restored - update, layer.weight.frozen) < 1e-5, "\(layer.path)")
        }
    }

    // MARK: - 3. Rank and count

    @Test(arguments: ["lora", "rslora"], [1, 4, 7]) func theUpdateHasExactlyTheRank(name: String, rank: Int) throws {
        let backbone = try model.backbone()
        let adapter = try adapter(name, ["r": JSON(rank), "target_modules": "all-linear"], on: backbone)
        try adapter.randomise(seed: 12)
        for (layer, _) in adapter.updates {
            let merged = try #require(try adapter.merged(layer.weight, pretrained: layer.weight.frozen))
            #expect(try numericalRank(merged - layer.weight.frozen) == rank, "\(layer.path)")
        }
        let sizes = adapter.updates.map { $0.linear.inFeatures + $0.linear.outFeatures }
        #expect(adapter.parameterCount == rank * sizes.reduce(0, +))
        adapter.detach()
        let withNorms = try PEFTTests.adapter("dora", ["r": JSON(rank), "target_modules": "all-linear"], on: backbone)
        let norms = withNorms.updates.reduce(0) { $0 + $1.linear.outFeatures }
        #expect(withNorms.parameterCount == adapter.parameterCount + norms)
    }

    @Test func countsWhatThePaperCounts() throws {
        let backbone = try SmallModel.robertaBase.backbone()
        #expect(try adapter("lora", ["r": 8], on: backbone).parameterCount == 294_912)
    }

    @Test func patternsSetRankAndScaleOfSingleLayers() throws {
        let adapter = try adapter(
            "lora", ["rank_pattern": ["layers.1.self_attn.v_proj": 5], "alpha_pattern": ["q_proj": 4]],
            on: model.backbone())
        let found = try adapter.lowRankUpdates().map {
            [try Double($0.update.factors().down.size(0)), $0.update.scale]
        }
        #expect(found == [[8, 0.5], [8, 1], [8, 0.5], [5, 8.0 / 5]])
    }

    // MARK: - 4. The first gradients

    @Test(arguments: variants) func theFirstGradientIsThatOfTheSecondFactor(name: String) throws {
        let backbone = try model.backbone()
        let adapter = try adapter(name, on: backbone)
        try nextTokenLoss(backbone, model.tokens()).backward()
        for trainable in adapter.trainables where trainable.name.hasSuffix(".weight") {
            let gradient = try #require(trainable.tensor.grad)
            let isFirstFactor = trainable.name.hasSuffix("lora_A.weight")
            let expectsZero = isFirstFactor && name != "pissa" && name != "olora"
            #expect(try isZero(gradient) == expectsZero, "\(trainable.name)")
        }
        #expect(backbone.parameters.allSatisfy { $0.frozen.grad == nil })
    }

    // MARK: - 5. rsLoRA

    @Test func rankStabilisedUpdatesAreLargerByTheRootOfTheRank() throws {
        let plain = try adapter("lora", ["r": 6], on: model.backbone())
        let stabilised = try adapter("rslora", ["r": 6], on: model.backbone())
        try plain.randomise(seed: 13)
        try stabilised.randomise(seed: 13)
        for (a, b) in zip(try plain.lowRankUpdates(), try stabilised.lowRankUpdates()) {
            #expect(try relativeGap(b.update.dense(), a.update.dense() * 6.0.squareRoot()) < 1e-6)
        }
    }

    // MARK: - 6. DoRA

    @Test func theMagnitudesAreTheRowNormsOfTheMergedWeight() throws {
        let adapter = try adapter("dora", on: model.backbone())
        for (layer, _) in adapter.updates {
            #expect(try relativeGap(magnitude(adapter, layer), layer.weight.frozen.norm([1])) < 1e-6)
        }
        try adapter.randomise(seed: 14)
        for (layer, _) in adapter.updates {
            let merged = try #require(try adapter.merged(layer.weight, pretrained: layer.weight.frozen))
            // A magnitude that the noise made negative turns its row round.
            #expect(try relativeGap(merged.norm([1]), magnitude(adapter, layer).absolute()) < 1e-5)
        }
    }

    @Test func theNormsAreConstantInTheBackwardPass() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("dora", ["r": 3, "lora_alpha": 6], on: backbone)
        try adapter.randomise(seed: 15)
        let layer = try #require(adapter.updates.first?.linear)
        var stream = Seed(16).stream("rows")
        let input = try Tensor.normal([5, layer.inFeatures], from: &stream)
        let weights = try Tensor.normal([5, layer.outFeatures], from: &stream)
        try (layer(input, Context()) * weights).sum().backward()

        let (a, b) = (try adapter.tensor("lora_A.weight"), try adapter.tensor("lora_B.weight"))
        let m = try adapter.tensor("lora_magnitude_vector")
        // With V = W + s B A, y = diag(m / n) V x and a loss sum(g * y): dL/dV = diag(m / n) g^T x.
        try withoutGrad {
            let direction = try layer.weight.frozen + b.matmul(a) * 2.0
            let norms = try direction.norm([1])
            let byWeight = try weights.transposed().matmul(input)
            let byDirection = try byWeight * (m / norms).unsqueezed(1)
            let expected = [
                (a, try b.transposed().matmul(byDirection) * 2.0), (b, try byDirection.matmul(a.transposed()) * 2.0),
                (m, try (byWeight * direction).sum([1]) / norms),
            ]
            for (tensor, gradient) in expected {
                #expect(try relativeGap(#require(tensor.grad), gradient) < 1e-5)
            }
        }
        // Through the norms the gradient is another.
        let kept = try #require(b.grad)
        try adapter.clearGradients()
        let direction = try layer.weight.frozen + b.matmul(a) * 2.0
        let whole = try direction * (m / direction.norm([1])).unsqueezed(1)
        try (linear(input, whole) * weights).sum().backward()
        #expect(try relativeGap(#require(b.grad), kept) > 0.01)
    }

    @Test func biasAndDroppedInputsAreScaledAsPublished() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("dora", ["lora_dropout": 0.4], on: backbone)
        try adapter.randomise(seed: 17)
        let (layer, _) = try #require(adapter.updates.first)
        var stream = Seed(18).stream("rows")
        let x = try Tensor.normal([6, layer.inFeatures], from: &stream)
        let source = DropoutSource(seed: Seed(19), pass: "1")
        let kept = try source.apply(x, probability: 0.4, name: layer.path)
        let (a, b) = (try adapter.tensor("lora_A.weight"), try adapter.tensor("lora_B.weight"))
        let weight = layer.weight.frozen
        let ratio = try adapter.tensor("lora_magnitude_vector") / (weight + b.matmul(a)).norm([1])
        // y + (m / n - 1) W x~ + (m / n) s B A x~, with s = 1 here.
        let expected =
            try layer.base(x) + (ratio - 1) * linear(kept, weight) + ratio * linear(linear(kept, a), b)
        #expect(try relativeGap(layer(x, Context(dropout: source)), expected) < 1e-5)
        #expect(try isZero(kept.indexed(.at(0))) == false)
    }

    // MARK: - 7. PiSSA and OLoRA

    @Test func whatPiSSALeavesHasTheNextSingularValueAsNorm() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("pissa", ["r": 5, "lora_alpha": 15], on: backbone)
        for (layer, _) in adapter.updates {
            let values = try singularValues(layer.weight.frozen)
            let residual = try residual(adapter, layer, scale: 3)
            let largest = try #require(try singularValues(residual).first)
            #expect(abs(largest / values[5] - 1) < 1e-5)
            // The principal part is shared out evenly.
            let (a, b) = try initialFactors(adapter, layer)
            #expect(try relativeGap(a.matmul(a.transposed()), b.transposed().matmul(b)) < 1e-4)
        }
    }

    @Test func theColumnsOfOLoRAStartOrthonormal() throws {
        let backbone = try model.backbone()
        let adapter = try adapter("olora", ["r": 5, "lora_alpha": 15], on: backbone)
        for (layer, _) in adapter.updates {
            let (a, b) = try initialFactors(adapter, layer)
            #expect(try relativeGap(b.transposed().matmul(b), Tensor.eye(5)) < 1e-5)
            // Columns of Q times rows of R: the product's columns before the rank are the weight's.
            let part = try b.matmul(a)
            let columns = try part.narrowed(1, start: 0, length: 5)
            #expect(try relativeGap(columns, layer.weight.frozen.narrowed(1, start: 0, length: 5)) < 1e-5)
        }
    }

    @Test(arguments: ["pissa", "olora"]) func changedStartsAreExportedRelativeToTheOriginalWeight(name: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter(name, ["r": 3, "use_rslora": true, "alpha_pattern": ["v_proj": 2]], on: backbone)
        try adapter.randomise(seed: 20)
        let adapted = try backbone.logits(ids)
        let (configuration, tensors) = try adapter.exported()
        adapter.detach()
        #expect(configuration.method.settings["r"] == 6)
        #expect(configuration.method.settings["init_lora_weights"] == true)
        let plain = try Adapter(configuration, on: backbone, seed: Seed(1))
        #expect(plain.trainables.map(\.name).sorted() == tensors.keys.sorted())
        try withoutGrad {
            for trainable in plain.trainables { try trainable.tensor.copy(from: #require(tensors[trainable.name])) }
        }
        #expect(try relativeGap(backbone.logits(ids), adapted) < 1e-5)
    }

    @Test(arguments: ["pissa", "olora"]) func ranksBeyondTheWeightsAreRefused(name: String) throws {
        let sentence = refusal { _ = try adapter(name, ["r": 17], on: model.backbone()) }
        #expect(sentence.contains("v_proj: rank 17 exceeds the weight's rank of 16"))
        let mixed = refusal { _ = try adapter(name, ["use_dora": true], on: model.backbone()) }
        #expect(mixed.contains("use_dora") && mixed.contains(name))
    }

    // MARK: - 8. LoRA+

    @Test func oneStepMovesTheSecondFactorByTheRatio() throws {
        let adapter = try adapter("lora", ["loraplus_lr_ratio": 16], on: model.backbone())
        try adapter.randomise(seed: 21)
        let (a, b) = (try adapter.tensor("lora_A.weight"), try adapter.tensor("lora_B.weight"))
        let before = try (a.detached().cloned(), b.detached().cloned())
        try a.setGrad(Tensor.ones(a.shape))
        try b.setGrad(Tensor.ones(b.shape))
        try adapter.descend(0.25)
        let moved: (Float, Float) = try ((before.0 - a).mean().item(), (before.1 - b).mean().item())
        #expect(abs(moved.1 / moved.0 - 16) < 1e-4)
        let sentence = refusal { _ = try PEFTTests.adapter("lora", ["loraplus_lr_ratio": 0], on: model.backbone()) }
        #expect(sentence.hasPrefix("loraplus_lr_ratio: expected a positive number"))
    }

    // MARK: - Parts of an adapter

    private func exportedFactors(_ adapter: Adapter, _ layer: Linear) throws -> (down: Tensor, up: Tensor) {
        let tensors = try adapter.exported().tensors
        return (
            try #require(tensors[adapterKey(layer.path, "lora_A.weight")]).detached(),
            try #require(tensors[adapterKey(layer.path, "lora_B.weight")]).detached()
        )
    }

    private func magnitude(_ adapter: Adapter, _ layer: Linear) throws -> Tensor {
        try adapter.tensor(layer.path + ".lora_magnitude_vector").detached()
    }

    /// The factors before any step, by their buffers.
    private func initialFactors(_ adapter: Adapter, _ layer: Linear) throws -> (a: Tensor, b: Tensor) {
        let a = try #require(adapter.buffers[adapterKey(layer.path, "initial_A")])
        let b = try #require(adapter.buffers[adapterKey(layer.path, "initial_B")])
        #expect(try a.isIdentical(to: adapter.tensor(layer.path + ".lora_A.weight").detached()))
        #expect(try b.isIdentical(to: adapter.tensor(layer.path + ".lora_B.weight").detached()))
        return (a, b)
    }

    private func residual(_ adapter: Adapter, _ layer: Linear, scale: Double) throws -> Tensor {
        let (a, b) = try initialFactors(adapter, layer)
        return try layer.weight.frozen - b.matmul(a) * scale
    }
}
