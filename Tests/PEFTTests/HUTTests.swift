import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of HUT must show.
@Suite struct HUTTests {
    private let model = SmallModel()
    /// One query projection of 20 outputs and 24 inputs, which 4 divides, and 7 does not.
    private let oblong = SmallModel(hidden: 24, heads: 5, keyValueHeads: 5, headDim: 4, layers: 1)

    private func oblongAdapter(_ more: KeyedList<JSON> = [:], noise: Double = 0.3) throws -> Adapter {
        var settings: KeyedList<JSON> = ["target_modules": ["q_proj"], "r": 4]
        for (key, value) in more { settings[key] = value }
        let adapter = try adapter("hut", settings, on: oblong.backbone())
        try adapter.randomise(seed: 61, by: noise)
        return adapter
    }

    // MARK: 1, 2: the start, and the formula

    /// The layers by themselves; the generic tests compare the model's logits.
    @Test(arguments: ["blocks", "power", "one_plus"]) func everyLayerBeginsAsItself(form: String) throws {
        let backbone = try model.backbone()
        let settings: KeyedList<JSON> = ["form": JSON(form), "r": 5, "target_modules": "all-linear"]
        for (layer, update) in try adapter("hut", settings, on: backbone).updates {
            var stream = Seed(62).stream(layer.path)
            let x = try Tensor.normal([3, layer.inFeatures], from: &stream)
            #expect(try layer(x, Context()).isIdentical(to: layer.base(x)), "\(layer.path)")
            #expect(try update.merged(into: layer.weight.frozen).isIdentical(to: layer.weight.frozen))
        }
    }

    /// Also where `r` divides neither inputs nor outputs, and where it is all of one of them.
    @Test(
        arguments: [
            ["r": 4], ["r": 7], ["r": 1], ["r": 18], ["r": 5, "scale_shift": false], ["r": 3, "form": "power"],
            ["r": 3, "form": "one_plus", "scale": 0.7], ["r": 2, "form": "one_plus", "scale_shift": false],
        ] as [KeyedList<JSON>])
    func equalsItsFormula(settings: KeyedList<JSON>) async throws {
        var settings = settings
        settings["target_modules"] = "all-linear"
        let sizes = SmallModel(hidden: 30, heads: 3, keyValueHeads: 3, headDim: 6, layers: 1, intermediate: 42)
        let adapter = try adapter("hut", settings, on: sizes.backbone(seed: 5))
        try adapter.randomise(seed: 63)
        let gaps = try await layerGaps(adapter, seed: 64, oracle: "hut.evaluate")
        #expect(gaps.update < 1e-6 && gaps.forward < 2e-6 && gaps.gradients < 5e-6, "\(gaps)")
    }

    /// The product of each pair of blocks by itself: no weight is made.
    @Test(arguments: [1, 4, 7]) func blocksOfTokensComputeTheSame(r: Int) throws {
        let adapter = try oblongAdapter(["r": JSON(r)])
        let (layer, _) = try #require(adapter.updates.first)
        let a = try adapter.tensor("hut_A").detached()
        let b = try adapter.tensor("hut_B").detached()
        var stream = Seed(65).stream("inputs")
        let x = try Tensor.normal([6, 24], from: &stream)
        // The first feature of each block: the least for which floor(i r / n) is the block.
        func bounds(_ features: Int) -> [Int] { (0...r).map { ($0 * features + r - 1) / r } }
        let (outputs, inputs) = (bounds(20), bounds(24))
        var parts: [Tensor] = []
        for p in 0..<r {
            let (start, length) = (outputs[p], outputs[p + 1] - outputs[p])
            var part = try #require(layer.bias).frozen.narrowed(0, start: start, length: length)
            for q in 0..<r {
                let (first, count) = (inputs[q], inputs[q + 1] - inputs[q])
                let scales = try a.narrowed(0, start: first, length: count).selected(1, p)
                let scaled = try x.narrowed(1, start: first, length: count) * scales
                let weight = try layer.weight.frozen.narrowed(0, start: start, length: length)
                    .narrowed(1, start: first, length: count)
                let rows = try b.selected(0, q).narrowed(0, start: start, length: length)
                part = try part + scaled.matmul(weight.transposed()) * rows
            }
            parts.append(part)
        }
        let expected =
            try Tensor.concatenate(parts, dimension: 1) * adapter.tensor("hut_gamma").detached()
            + adapter.tensor("hut_beta").detached()
        #expect(try relativeGap(layer(x, Context()).detached(), expected) < 1e-5)
    }

    // MARK: 3, 4, 5: what kind of change it is

    @Test func ranksOfTheFactorsAndOfTheChange() throws {
        let adapter = try oblongAdapter(["scale_shift": false])
        let (layer, update) = try #require(adapter.updates.first)
        let ones = try Tensor.ones([20, 24])
        func rank(_ weight: Tensor, less start: Tensor? = nil) throws -> Int {
            let merged = try withoutGrad { try update.merged(into: weight) }
            return try numericalRank(start.map { try merged - $0 } ?? merged)
        }
        #expect(try rank(ones) == 16)
        #expect(try rank(layer.weight.frozen, less: layer.weight.frozen) == 20)
        for (others, own) in [("hut_B", "hut_A"), ("hut_A", "hut_B")] {
            let kept = try adapter.tensor(others).detached().cloned()
            try withoutGrad { try adapter.tensor(others).fill(1) }
            #expect(try rank(ones) == 4, "\(own)")
            try withoutGrad { try adapter.tensor(others).copy(from: kept) }
        }
    }

    @Test(arguments: ["blocks", "power", "one_plus"]) func isAFunctionOfTheWeight(form: String) throws {
        let adapter = try oblongAdapter(["form": JSON(form)])
        let (layer, update) = try #require(adapter.updates.first)
        try withoutGrad {
            let weight = try layer.weight.frozen.cloned()
            try weight.narrowed(1, start: 3, length: 9).fill(0)
            let merged = try update.merged(into: weight)
            #expect(try isZero(merged.narrowed(1, start: 3, length: 9)))
            // A power of two scales without rounding.
            #expect(try update.merged(into: weight * 4).isIdentical(to: merged * 4))
        }
    }

    @Test(arguments: ["blocks", "power"]) func oneBlockIsTwoDiagonals(form: String) throws {
        let adapter = try oblongAdapter(["form": JSON(form), "r": 1, "scale_shift": false])
        let (layer, update) = try #require(adapter.updates.first)
        let (a, b) = (try adapter.tensor("hut_A"), try adapter.tensor("hut_B"))
        #expect(a.shape == [24, 1] && b.shape == [1, 20])
        func diagonal(_ vector: Tensor) throws -> Tensor { try callTensor("aten::diag", vector.reshaped([-1])) }
        try withoutGrad {
            let weight = try layer.weight.frozen.to(dtype: .float64)
            let expected = try diagonal(b.to(dtype: .float64)).matmul(weight).matmul(diagonal(a.to(dtype: .float64)))
            #expect(try relativeGap(update.merged(into: weight), expected) < 1e-12)
        }
    }

    // MARK: 6: merging

    /// `q_proj` has a bias in the small model, `up_proj` has none.
    @Test(arguments: ["q_proj", "up_proj"], ["blocks", "power", "one_plus"])
    func mergesWithAndWithoutABias(target: String, form: String) throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let frozen = try backbone.frozenBits()
        let adapter = try adapter(
            "hut", ["target_modules": [.string(target)], "form": JSON(form), "r": 3], on: backbone)
        try adapter.randomise(seed: 66)
        let (layer, update) = try #require(adapter.updates.first)
        #expect((layer.bias == nil) == (target == "up_proj"))
        let (gamma, beta) = (
            try adapter.tensor("\(layer.path).hut_gamma"), try adapter.tensor("\(layer.path).hut_beta")
        )
        let bias = try withoutGrad { try layer.bias.map { try gamma * $0.frozen + beta } ?? beta }
        let changed = try update.mergedBias(layer.bias?.frozen)
        let merged = try #require(changed).detached()
        #expect(try relativeGap(merged, bias.detached()) < 1e-6)
        let adapted = try backbone.logits(ids)
        try adapter.mergeIntoBackbone()
        #expect(try relativeGap(backbone.logits(ids), adapted) < 1e-5)
        try adapter.unmerge()
        #expect(try backbone.frozenBits() == frozen)
        #expect(try backbone.logits(ids).isIdentical(to: adapted))
    }

    // MARK: 7: what is trained

    @Test func countsByItsFormula() throws {
        let large = SmallModel(
            hidden: 1024, heads: 16, keyValueHeads: 16, headDim: 64, layers: 24, intermediate: 4, isHollow: true)
        #expect(try adapter("hut", on: large.backbone()).parameterCount == 884_736)
        for (settings, count) in [
            (["r": 7], 7 * 44 + 40), (["scale_shift": false], 4 * 44), (["form": "power"], 44 + 40),
            (["form": "one_plus"], 4 * 44 + 40),
        ] as [(KeyedList<JSON>, Int)] {
            #expect(try oblongAdapter(settings).parameterCount == count)
        }
    }

    /// The layer is linear in each entry of the tensors, so that central differences are exact at any width.
    @Test(arguments: [4, 7]) func gradientsAreFiniteDifferences(r: Int) throws {
        let adapter = try oblongAdapter(["r": JSON(r)])
        let (layer, update) = try #require(adapter.updates.first)
        var stream = Seed(67).stream("inputs")
        let (x, g) = (try Tensor.normal([5, 24], from: &stream), try Tensor.normal([5, 20], from: &stream))
        try (layer(x, Context()) * g).sum().backward()
        #expect(layer.parameters.allSatisfy { !$0.frozen.requiresGrad && $0.frozen.grad == nil })
        let weight = try layer.weight.frozen.to(dtype: .float64)
        let bias = try #require(layer.bias).frozen.to(dtype: .float64)
        func loss() throws -> Double {
            let output = try linear(x.to(dtype: .float64), update.merged(into: weight), update.mergedBias(bias))
            return try (output * g.to(dtype: .float64)).sum().item()
        }
        #expect(adapter.trainables.count == 4)
        for trainable in adapter.trainables {
            let values = try trainable.tensor.reshaped([-1]).detached()
            let found: [Double] = try #require(trainable.tensor.grad).values()
            let largest = found.reduce(0) { max($0, abs($1)) }
            try withoutGrad {
                for index in stride(from: 0, to: values.size(0), by: 3) {
                    let entry = try values.narrowed(0, start: index, length: 1)
                    let own: Double = try entry.item()
                    try entry.fill(own + 0.5)
                    let (high, above) = (try loss(), try entry.item(as: Double.self))
                    try entry.fill(own - 0.5)
                    let (low, below) = (try loss(), try entry.item(as: Double.self))
                    try entry.fill(own)
                    #expect(abs((high - low) / (above - below) - found[index]) < 1e-5 * largest, "\(trainable.name)")
                }
            }
        }
    }

    /// Decay would pull ones towards zero.
    @Test func whatStartsAsOnesDoesNotDecay() throws {
        for form in ["blocks", "power", "one_plus"] {
            for trainable in try oblongAdapter(["form": JSON(form)], noise: 0).trainables {
                let startsAsOnes = try trainable.tensor.isIdentical(to: Tensor.ones(trainable.tensor.shape))
                if case .none = trainable.decay {
                    #expect(startsAsOnes, "\(trainable.name)")
                } else {
                    #expect(!startsAsOnes, "\(trainable.name)")
                }
            }
        }
    }

    // MARK: 8: what it costs

    /// Every extra product leaves one number, so what a pass keeps beyond its output tells how they grow.
    @Test func extraProductsGrowNeitherWithRankNorWithTokens() throws {
        let wide = SmallModel(hidden: 64, heads: 4, keyValueHeads: 4, headDim: 16, layers: 1)
        func kept(_ method: String, _ r: Int, tokens: Int, _ more: KeyedList<JSON> = [:]) throws -> Int {
            let settings: KeyedList<JSON> = ["r": JSON(r), "target_modules": ["q_proj"]]
            var whole = settings
            for (key, value) in more { whole[key] = value }
            let adapter = try adapter(method, whole, on: wide.backbone())
            let layer = try #require(adapter.updates.first).linear
            let x = try Tensor.ones([tokens, 64])
            return try Memory.watching { held in
                let output = try layer(x, Context())
                let bytes = try held().now
                return bytes - output.shape.reduce(4, *)
            }
        }
        let kinds = [(1, 64), (8, 64), (32, 64), (8, 512)]
        let hut = try kinds.map { try kept("hut", $0.0, tokens: $0.1, ["scale_shift": false]) }
        #expect(Set(hut).count == 1 && hut[0] >= 2 * 4 * 64 * 64, "\(hut)")
        let lora = try kinds.map { try kept("lora", $0.0, tokens: $0.1) }
        #expect(lora[0] < lora[1] && lora[1] < lora[2] && lora[1] < lora[3], "\(lora)")
    }

    // MARK: The rest

    @Test func moreBlocksThanFeaturesAreRefused() throws {
        let sentence = refusal {
            _ = try adapter("hut", ["r": 21, "target_modules": ["q_proj"]], on: oblong.backbone())
        }
        #expect(sentence.hasPrefix("r: expected at most 20 blocks, as model.layers.0.self_attn.q_proj is 20 by 24"))
        #expect(refusal { _ = try adapter("hut", ["form": "cubes"], on: oblong.backbone()) }.contains("one_plus"))
    }
}
