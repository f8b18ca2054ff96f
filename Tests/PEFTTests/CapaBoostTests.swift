import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of CapaBoost-LoRA must show.
@Suite struct CapaBoostTests {
    /// One square matrix of 64 features a role.
    private let square = SmallModel(hidden: 64, heads: 4, keyValueHeads: 4, headDim: 16, layers: 1)
    private let model = SmallModel()
    private static let unmasked: KeyedList<JSON> = ["num_layer": 1, "density": 1]

    // MARK: - 1. Without masks

    @Test(arguments: [0, 0.3]) func oneBranchWithoutMasksIsLoRA(dropout: Double) throws {
        let ids = try model.tokens()
        var settings = Self.unmasked
        settings["lora_dropout"] = JSON(dropout)
        let boosted = try model.backbone()
        let adapter = try adapter("capaboost-lora", settings, on: boosted)
        let plain = try model.backbone()
        let lora = try PEFTTests.adapter("lora", ["lora_dropout": JSON(dropout)], on: plain)
        #expect(adapter.trainables.map(\.name) == lora.trainables.map(\.name))
        for (a, b) in zip(adapter.trainables, lora.trainables) { #expect(try a.tensor.isIdentical(to: b.tensor)) }
        for adapter in [adapter, lora] { try adapter.randomise(seed: 41) }
        let context = Context(dropout: DropoutSource(seed: Seed(1), pass: "1"))
        #expect(try boosted.logits(ids, context).isIdentical(to: plain.logits(ids, context)))
        #expect(try boosted.logits(ids).isIdentical(to: plain.logits(ids)))
    }

    @Test func branchesWithoutMasksOnlyScale() throws {
        let one = try adapter("capaboost-lora", ["num_layer": 1, "density": 1, "r": 4], on: square.backbone())
        let three = try adapter("capaboost-lora", ["num_layer": 3, "density": 1, "r": 4], on: square.backbone())
        for adapter in [one, three] { try adapter.randomise(seed: 42) }
        for (a, b) in zip(try one.lowRankUpdates(), try three.lowRankUpdates()) {
            #expect(try relativeGap(b.update.dense(), a.update.dense() * 3) < 1e-6)
            #expect(try numericalRank(b.update.dense()) == 4)
        }
    }

    // MARK: - 2. Rank

    @Test(arguments: [2, 3], ["equal_per_layer", "NM_structured"])
    func theRankGrowsWithTheBranches(branches: Int, type: String) throws {
        let adapter = try adapter(
            "capaboost-lora", ["r": 4, "num_layer": JSON(branches), "mask_type": JSON(type)], on: square.backbone())
        try adapter.randomise(seed: 43)
        for (_, update) in try adapter.lowRankUpdates() {
            #expect(try numericalRank(update.dense()) == 4 * branches)
        }
    }

    // MARK: - 3. Masks

    /// The masks of a layer's factor, `[branches, ...]`, as the update shows them: ones in the factor come back masked.
    private func masks(_ adapter: Adapter) throws -> [(name: String, mask: Tensor)] {
        for trainable in adapter.trainables { try withoutGrad { try trainable.tensor.fill(1) } }
        return try withoutGrad {
            try adapter.lowRankUpdates().flatMap { layer, update in
                let (down, up) = try update.factors()
                let rank = try adapter.tensor(layer.path + ".lora_A.weight").size(0)
                return try (0..<(down.size(0) / rank)).flatMap { branch in
                    [
                        (
                            "\(layer.path).lora_A.mask.\(branch)",
                            try down.narrowed(0, start: branch * rank, length: rank)
                        ),
                        ("\(layer.path).lora_B.mask.\(branch)", try up.narrowed(1, start: branch * rank, length: rank)),
                    ]
                }
            }
        }
    }

    @Test(arguments: [0.5, 0.3, 0.77]) func masksKeepExactlyTheirShare(density: Double) throws {
        let adapter = try adapter("capaboost-lora", ["r": 5, "density": JSON(density)], on: model.backbone())
        let masks = try masks(adapter)
        #expect(masks.count == 4 * 2 * 2)
        for (name, mask) in masks {
            let values: [Float] = try mask.values()
            #expect(values.allSatisfy { $0 == 0 || $0 == 1 })
            #expect(values.reduce(0, +) == Float((density * Double(values.count)).rounded(.down)), "\(name)")
        }
        let distinct = try Set(masks.map { try $0.mask.values(as: Float.self) })
        #expect(distinct.count == masks.count)
    }

    @Test func structuredMasksKeepTwoOfFour() throws {
        let adapter = try adapter("capaboost-lora", ["r": 4, "mask_type": "NM_structured"], on: model.backbone())
        var patterns: Set<[Float]> = []
        for (name, mask) in try masks(adapter) {
            let groups = try mask.reshaped([-1, 4])
            #expect(try groups.sum([1]).values(as: Float.self).allSatisfy { $0 == 2 }, "\(name)")
            let values: [Float] = try groups.values()
            patterns.formUnion(stride(from: 0, to: values.count, by: 4).map { Array(values[$0..<($0 + 4)]) })
        }
        #expect(patterns.count == 6)
    }

    @Test func masksFollowFromTheirSeedAndNameAlone() throws {
        let first = try adapter("capaboost-lora", ["r": 4, "mask_seed": 12], on: model.backbone(), seed: 7)
        let again = try adapter(
            "capaboost-lora", ["r": 4, "mask_seed": 12, "target_modules": "all-linear"], on: model.backbone(), seed: 8)
        let known = try Dictionary(uniqueKeysWithValues: masks(again).map { ($0.name, $0.mask) })
        for (name, mask) in try masks(first) {
            #expect(try mask.isIdentical(to: #require(known[name])), "\(name)")
            // The rule, step by step.
            var stream = Seed(12).stream(name)
            var expected = [Float](repeating: 0, count: mask.count)
            for index in stream.permutation(mask.count).prefix(mask.count / 2) { expected[index] = 1 }
            #expect(try mask.values() == expected, "\(name)")
        }
        let other = try adapter("capaboost-lora", ["r": 4, "mask_seed": 13], on: model.backbone(), seed: 7)
        for (a, b) in zip(try masks(first), try masks(other)) { #expect(try !a.mask.isIdentical(to: b.mask)) }
    }

    @Test(arguments: [7, UInt64.max - 3]) func masksComeBackFromWhatIsSaved(seed: UInt64) throws {
        let adapter = try adapter("capaboost-lora", on: model.backbone(), seed: seed)
        let saved = try adapter.exported().configuration
        let settings = try JSON.parse(JSON.object(saved.method.settings).compact).object ?? [:]
        #expect(settings["mask_seed"] == .integer(Int64(truncatingIfNeeded: seed)))
        let loaded = try PEFTTests.adapter("capaboost-lora", settings, on: model.backbone(), seed: 1)
        for (a, b) in zip(try masks(adapter), try masks(loaded)) { #expect(try a.mask.isIdentical(to: b.mask)) }
    }

    @Test func masksStayInTraining() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter("capaboost-lora", on: backbone)
        for _ in 0..<100 {
            try nextTokenLoss(backbone, ids).backward()
            try adapter.descend(0.05)
        }
        let fresh = try PEFTTests.adapter("capaboost-lora", on: model.backbone())
        for (a, b) in zip(try masks(adapter), try masks(fresh)) { #expect(try a.mask.isIdentical(to: b.mask)) }
    }

    // MARK: - 4. Gradients

    @Test func gradientsAreTheSumsOfTheBranches() throws {
        let backbone = try square.backbone()
        let adapter = try adapter("capaboost-lora", ["r": 4, "num_layer": 3, "lora_alpha": 6], on: backbone)
        let masks = try Dictionary(uniqueKeysWithValues: masks(adapter).map { ($0.name, $0.mask) })
        try adapter.randomise(seed: 44)
        let (layer, _) = try #require(adapter.updates.first)
        var stream = Seed(45).stream("rows")
        let x = try Tensor.normal([7, 64], from: &stream)
        let weights = try Tensor.normal([7, 64], from: &stream)
        let output = try layer(x, Context())
        try (output * weights).sum().backward()

        // Tied copies: each branch has its own masked factors, whose gradients are masked again and summed.
        var reference = try layer.base(x)
        var copies: [String: [(copy: Tensor, mask: Tensor)]] = [:]
        for branch in 0..<3 {
            let pair = try ["lora_A", "lora_B"].map { name in
                let mask = try #require(masks["\(layer.path).\(name).mask.\(branch)"])
                let factor = try adapter.tensor("\(layer.path).\(name).weight")
                let copy = try (factor.detached() * mask).requiringGrad()
                copies[name, default: []].append((copy, mask))
                return copy
            }
            reference = try reference + linear(linear(x, pair[0]), pair[1]) * 1.5
        }
        #expect(try relativeGap(output, reference) < 1e-5)
        try (reference * weights).sum().backward()
        for name in ["lora_A", "lora_B"] {
            let summed = try #require(copies[name]).reduce(Tensor.zeros([1])) {
                try $0 + #require($1.copy.grad) * $1.mask
            }
            let shared = try #require(adapter.tensor("\(layer.path).\(name).weight").grad)
            #expect(try relativeGap(shared, summed) < 1e-5, "\(name)")
        }
    }

    @Test func entriesInNoMaskStayAndDoNotDecay() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let adapter = try adapter("capaboost-lora", on: backbone)
        let before = try adapter.trainables.map { try $0.tensor.detached().cloned() }
        let masks = try Dictionary(uniqueKeysWithValues: masks(adapter).map { ($0.name, $0.mask) })
        for (trainable, values) in zip(adapter.trainables, before) {
            try withoutGrad { try trainable.tensor.copy(from: values) }
        }
        for _ in 0..<5 {
            try nextTokenLoss(backbone, ids).backward()
            try adapter.descend(0.1)
        }
        for (trainable, old) in zip(adapter.trainables, before) {
            let place = trainable.name.dropFirst("base_model.model.".count).dropLast(".weight".count)
            let first = try #require(masks["\(place).mask.0"])
            let live = try (first + #require(masks["\(place).mask.1"])).values(as: Float.self)
            guard case .only(let decaying) = trainable.decay else {
                Issue.record("\(trainable.name) decays everywhere")
                continue
            }
            #expect(decaying.shape == trainable.tensor.shape)
            #expect(try decaying.values(as: Float.self) == live.map { min($0, 1) })
            let moved: [Float] = try (trainable.tensor - old).values()
            #expect(zip(moved, live).allSatisfy { $0 == 0 || $1 > 0 }, "\(trainable.name)")
            #expect(moved.contains { $0 != 0 })
            // A quarter is seen by neither of two branches.
            let share = Double(live.count { $0 > 0 }) / Double(live.count)
            #expect(abs(share - 0.75) < 0.12)
        }
    }

    // MARK: - 5. The start, merging, dropout

    @Test func beginsAsTheFrozenModelAndMerges() throws {
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let before = try backbone.logits(ids)
        let adapter = try adapter("capaboost-lora", ["num_layer": 3, "target_modules": "all-linear"], on: backbone)
        #expect(try backbone.logits(ids).isIdentical(to: before))
        try adapter.randomise(seed: 46)
        let adapted = try backbone.logits(ids)
        let merged = try adapter.whileMerged { try backbone.logits(ids) }
        #expect(try relativeGap(merged, adapted) < 1e-5)
    }

    @Test func everyBranchDropsElementsOfItsOwn() throws {
        let adapter = try adapter("capaboost-lora", ["r": 4, "lora_dropout": 0.5], on: square.backbone())
        try adapter.randomise(seed: 47)
        let (layer, update) = try #require(try adapter.lowRankUpdates().first)
        let (down, up) = try update.factors()
        var stream = Seed(48).stream("rows")
        let x = try Tensor.normal([3, 64], from: &stream)
        let source = DropoutSource(seed: Seed(49), pass: "1")
        var expected = try layer.base(x)
        var kept: [Tensor] = []
        for branch in 0..<2 {
            kept.append(try source.apply(x, probability: 0.5, name: "\(layer.path).\(branch)"))
            let part = try linear(kept[branch], down.narrowed(0, start: 4 * branch, length: 4))
            expected = try expected + linear(part, up.narrowed(1, start: 4 * branch, length: 4)) * 2.0
        }
        #expect(try relativeGap(layer(x, Context(dropout: source)), expected) < 1e-5)
        #expect(try !kept[0].isIdentical(to: kept[1]))
    }

    @Test func theBoundOfTheStartCanBeThatOfTheRank() throws {
        let wide = try adapter("capaboost-lora", ["r": 4, "init_bound": "r"], on: square.backbone())
        let largest: Double = try wide.tensor("lora_A.weight").absolute().maximum().item()
        #expect(largest <= 0.5 && largest > 0.45)
        let narrow = try adapter("capaboost-lora", ["r": 4], on: square.backbone())
        #expect(try narrow.tensor("lora_A.weight").absolute().maximum().item(as: Double.self) <= 1.0 / 8)
    }

    // MARK: - 6. Count, 7. size

    @Test func branchesCostNoTrainedValueAndNoByteOfTheFile() throws {
        func measured(_ name: String, _ settings: KeyedList<JSON>) throws -> (count: Int, shapes: [[Int]], bytes: Int) {
            try withTemporaryFolder { folder in
                let adapter = try adapter(name, settings, on: model.backbone())
                try SafetensorsWriter.write(adapter.exported().tensors, to: folder("adapter_model.safetensors"))
                let bytes = try MappedFile(path: folder("adapter_model.safetensors")).bytes.count
                // An optimiser keeps state for each trainable tensor, in its shape.
                return (adapter.parameterCount, adapter.trainables.map(\.tensor.shape), bytes)
            }
        }
        let lora = try measured("lora", [:])
        for branches in [1, 2, 5] {
            let boosted = try measured("capaboost-lora", ["num_layer": JSON(branches)])
            #expect(boosted.count == lora.count && boosted.shapes == lora.shapes)
            #expect(boosted.bytes <= lora.bytes)
        }
        let large = try adapter("capaboost-lora", on: SmallModel.robertaBase.backbone())
        #expect(large.parameterCount == 294_912)
    }

    // MARK: - 8. Expressiveness

    /// An update of twice the rank is out of LoRA's reach, whose best loss is the sum of the squared singular values
    /// beyond the rank (Eckart and Young).
    ///
    /// The target is an update that masks can make. For an arbitrary one of twice the rank LoRA's optimum is the lower
    /// of the two: masking frees no value, it only spreads those that there are over more directions.
    @Test func fitsUpdatesOfTwiceTheRankThatLoRACannot() throws {
        let model = SmallModel(hidden: 16, heads: 2, keyValueHeads: 2, headDim: 8, layers: 1)
        let settings: KeyedList<JSON> = ["r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]]
        let aim = try adapter("capaboost-lora", settings, on: model.backbone())
        try aim.randomise(seed: 51, by: 1)
        let target = try #require(try aim.lowRankUpdates().first?.update.dense()).detached()
        let values = try singularValues(target)
        let reachable = values.dropFirst(2).reduce(0) { $0 + $1 * $1 }
        #expect(try numericalRank(target) == 4)

        let boosted = try adapter("capaboost-lora", settings, on: model.backbone())
        try boosted.randomise(seed: 52, by: 1)
        let update = try #require(try boosted.lowRankUpdates().first?.update)
        var loss = Double.infinity
        for _ in 0..<2000 {
            let error = try (update.dense() - target).squared().sum()
            loss = try error.item()
            try error.backward()
            try boosted.descend(0.01)
        }
        #expect(loss < 0.5 * reachable, "\(loss) against \(reachable)")
        let lora = try adapter("lora", settings, on: model.backbone())
        #expect(lora.parameterCount == boosted.parameterCount)
    }

    // MARK: - What does not fit

    @Test func settingsThatMakeNoMasksAreRefused() throws {
        func sentence(_ settings: KeyedList<JSON>) -> String {
            refusal { _ = try adapter("capaboost-lora", settings, on: model.backbone()) }
        }
        #expect(sentence(["density": 0]).hasPrefix("density: expected a number above 0"))
        #expect(sentence(["density": 1.5]).hasPrefix("density: expected a number above 0"))
        #expect(sentence(["density": 0.001]).contains("less than one entry"))
        #expect(sentence(["num_layer": 0]).hasPrefix("num_layer: expected a positive whole number"))
        #expect(
            sentence(["mask_type": "NM_structured", "density": 0.25]).hasPrefix("density: mask_type NM_structured"))
        #expect(sentence(["mask_type": "2:4"]).contains("one of equal_per_layer, NM_structured"))
        #expect(sentence(["lora_dropout": 1]).hasPrefix("lora_dropout: expected"))
        let odd = refusal {
            let narrow = SmallModel(hidden: 18, heads: 3, keyValueHeads: 3, headDim: 6)
            _ = try adapter("capaboost-lora", ["r": 1, "mask_type": "NM_structured"], on: narrow.backbone())
        }
        #expect(odd.hasPrefix("mask_type: NM_structured needs groups of four") && odd.contains("18 entries"))
    }
}
