import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// Adapters combined into one, against peft's own combination and against the updates themselves.
@Suite struct CombinationTests {
    private func none() throws -> any Backbone { throw PEFTError("the model was asked for") }

    /// The update of every layer, dense.
    private func updates(_ folder: String, on backbone: any Backbone) throws -> KeyedList<Tensor> {
        let adapter = try Adapter.load(from: folder, onto: backbone)
        defer { adapter.detach() }
        var result = KeyedList<Tensor>()
        for (linear, update) in adapter.updates {
            let weight = try linear.weight.values(dtype: .float64)
            result[linear.path] = try withoutGrad { try update.merged(into: weight) - weight }
        }
        return result
    }

    private static let peftRules = CombinationRule.allCases

    @Test(arguments: peftRules) func equalsPeft(rule: CombinationRule) async throws {
        let model = try await TinyModels.shared.folder("llama")
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        // Other layers in each, and scales of their own.
        let configs: [KeyedList<JSON>] = [
            ["r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]],
            ["r": 4, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]],
            ["r": 4, "lora_alpha": 9, "target_modules": ["v_proj", "q_proj"], "use_rslora": true],
        ]
        let weights = [0.7, -1.1, 0.4]
        // One whose settings peft carries over to the result must not come first: it would be scaled twice.
        try await withTemporaryFolder { folder in
            var adapters: [String] = []
            for (index, config) in configs.enumerated() {
                adapters.append(folder("a\(index)"))
                _ = try await Oracle.shared.call(
                    "peft.make_adapter",
                    [
                        "model_folder": JSON(model), "folder": JSON(adapters[index]), "seed": JSON(index + 1),
                        "config": .object(config),
                    ])
            }
            var combination = AdapterCombination(rule, weights: weights, density: rule.needsDensity ? 0.6 : nil)
            combination.seed = Seed(5)
            var settings: KeyedList<JSON> = ["combination_type": .string(rule.rawValue)]
            if rule.needsDensity { settings["density"] = 0.6 }
            if rule == .ties || rule == .tiesSVD {
                combination.majoritySign = .frequency
                settings["majority_sign_method"] = "frequency"
            }
            if rule.rawValue.hasSuffix("svd") {
                combination.rank = 6
                settings["svd_rank"] = 6
            }
            var call: KeyedList<JSON> = [
                "model_folder": JSON(model), "adapters": JSON(adapters.map { JSON($0) }),
                "weights": JSON(weights.map { JSON($0) }), "settings": .object(settings),
                "ids": JSON(tokens: exampleTokens), "output": JSON(folder("peft")),
            ]
            if rule.rawValue.hasPrefix("dare") {
                try writeMasks(adapters, rule, on: backbone, seed: combination.seed, to: folder("masks"))
                call["masks"] = JSON(folder("masks"))
            }
            let layers = try await Oracle.shared.call("values.weighted", call)
            let report = try combination.combine(adapters, to: folder("sum"), backbone: none)
            let found = try updates(folder("sum"), on: backbone)
            #expect(found.keys.sorted() == layers.array?.compactMap(\.string) && report.layers == found.count)
            #expect(report.rank == (rule == .cat ? 12 : rule.rawValue.hasSuffix("svd") ? 6 : 4))
            for (path, update) in found {
                let gap = try relativeGap(update, storedTensor(folder("peft"), path))
                #expect(gap < 2e-5, "\(path)")
            }
            // Another program reads the folder and answers as peft's combination does.
            _ = try await Oracle.shared.call(
                "peft.logits",
                [
                    "model_folder": JSON(model), "adapter_folder": JSON(folder("sum")),
                    "ids": JSON(tokens: exampleTokens), "output": JSON(folder("logits")),
                ])
            let (ours, theirs) = (
                try storedTensor(folder("logits"), "logits"), try storedTensor(folder("peft"), "logits")
            )
            #expect(try relativeGap(ours, theirs) < 1e-4)
        }
    }

    /// The masks that Graft's random pruning draws, for peft to draw the same.
    private func writeMasks(
        _ adapters: [String], _ rule: CombinationRule, on backbone: any Backbone, seed: Seed, to path: String
    ) throws {
        var masks = KeyedList<Tensor>()
        for (index, folder) in adapters.enumerated() {
            let adapter = try Adapter.load(from: folder, onto: backbone)
            defer { adapter.detach() }
            for (linear, update) in try adapter.lowRankUpdates() {
                let (down, up) = try update.factors()
                let shapes =
                    rule.rawValue.hasSuffix("svd")
                    ? ["delta": [up.size(0), down.size(1)]] : ["lora_A": down.shape, "lora_B": up.shape]
                for (name, shape) in shapes {
                    var stream = seed.stream("dare/\(linear.path)/\(name)/\(index)")
                    let numbers = try Tensor.uniform(shape, in: 0..<1, from: &stream)
                    masks["\(linear.path)/\(name)/\(index)"] = try callTensor("aten::lt.Scalar", numbers, 0.6)
                        .to(dtype: .float32)
                }
            }
        }
        try SafetensorsWriter.write(masks, to: path)
    }

    /// Where peft is wrong (rsLoRA first) or refuses (ranks and patterns), the sum of updates is the measure.
    @Test(arguments: [CombinationRule.cat, .svd]) func ranksScalesAndPatternsDoNotMatter(rule: CombinationRule) throws {
        let backbone = try SmallModel().backbone()
        let settings: [KeyedList<JSON>] = [
            ["r": 3, "use_rslora": true, "lora_alpha": 5, "target_modules": "all-linear"],
            ["r": 2, "rank_pattern": ["q_proj": 5], "alpha_pattern": ["layers.1.*v_proj": 7]],
            ["r": 4, "init_lora_weights": "pissa", "layers_to_transform": [1], "target_modules": ["up_proj"]],
        ]
        let weights = [0.5, 2, -1]
        try withTemporaryFolder { folder in
            var expected = KeyedList<Tensor>()
            for (index, settings) in settings.enumerated() {
                let adapter = try adapter("lora", settings, on: backbone)
                try adapter.randomise(seed: UInt64(index))
                try adapter.save(to: folder("a\(index)"))
                adapter.detach()
                for (path, update) in try updates(folder("a\(index)"), on: backbone) {
                    let part = try update * weights[index]
                    expected[path] = try expected[path].map { try $0 + part } ?? part
                }
            }
            let paths = ["a0", "a1", "a2"].map { folder($0) }
            for order in [[0, 1, 2], [2, 0, 1]] {
                var combination = AdapterCombination(rule, weights: order.map { weights[$0] })
                combination.rank = rule == .svd ? 20 : nil
                let report = try combination.combine(order.map { paths[$0] }, to: folder("sum"), backbone: none)
                #expect(report.lost < 1e-6)
                let found = try updates(folder("sum"), on: backbone)
                #expect(Set(found.keys) == Set(expected.keys))
                for (path, update) in found {
                    #expect(try relativeGap(update, #require(expected[path])) < 1e-5, "\(path)")
                }
            }
        }
    }

    @Test func aRankCutsTheSmallestDirectionsOff() throws {
        let backbone = try SmallModel().backbone()
        try withTemporaryFolder { folder in
            let adapter = try adapter("lora", ["r": 6, "target_modules": ["q_proj"]], on: backbone)
            try adapter.randomise(seed: 1)
            try adapter.save(to: folder("a"))
            adapter.detach()
            var combination = AdapterCombination(.svd)
            combination.rank = 2
            let report = try combination.combine([folder("a")], to: folder("b"), backbone: none)
            var (cut, all) = (0.0, 0.0)
            let (before, after) = (try updates(folder("a"), on: backbone), try updates(folder("b"), on: backbone))
            for (path, update) in before {
                let values = try singularValues(update)
                all += values.reduce(0) { $0 + $1 * $1 }
                cut += values.dropFirst(2).reduce(0) { $0 + $1 * $1 }
                let gap = try (update - #require(after[path])).norm().item(as: Double.self)
                #expect(abs(gap * gap - values.dropFirst(2).reduce(0) { $0 + $1 * $1 }) < 1e-4 * gap * gap)
            }
            #expect(abs(report.lost - (cut / all).squareRoot()) < 1e-4)
        }
    }

    @Test("merge([a],[1]) == a for each method, or a refusal", arguments: MethodCase.all)
    func mergeOfOneIsItself(method: MethodCase) throws {
        let model = SmallModel(hidden: 64, heads: 4, keyValueHeads: 2, headDim: 16, intermediate: 80)
        let backbone = try model.backbone()
        let ids = try model.tokens()
        let isRanked = ["lora", "rslora", "dora", "pissa", "olora", "capaboost-lora"].contains(method.name)
        try withTemporaryFolder { folder in
            let adapter = try method.adapter(on: backbone, isRanked ? ["r": 4] : [:])
            try adapter.randomise(seed: 6)
            let expected = try backbone.logits(ids)
            try adapter.save(to: folder("a"))
            adapter.detach()
            for rule in CombinationRule.allCases {
                var combination = AdapterCombination(rule, weights: [1])
                if rule.needsDensity { combination.density = 1 }
                let sentence = refusal {
                    _ = try combination.combine([folder("a")], to: folder("b")) { backbone }
                    let merged = try Adapter.load(from: folder("b"), onto: backbone)
                    #expect(merged.configuration.method is LoRA)
                    #expect(try relativeGap(backbone.logits(ids), expected) < 1e-5, "\(rule)")
                    merged.detach()
                }
                #expect(backbone.attachPoints.allSatisfy { $0.occupant == nil })
                let reasons = ["low-rank", "thin factors", "trained whole", "changes no weight", "cannot be combined"]
                #expect(sentence.isEmpty || reasons.contains { sentence.contains($0) }, "\(rule): \(sentence)")
                if Self.exact.contains(method.name) { #expect(sentence.isEmpty, "\(rule): \(sentence)") }
            }
        }
    }

    /// Methods whose update is a product of thin factors: they must not be refused.
    private static let exact: Set<String> = ["lora", "rslora", "pissa", "olora", "lorta", "capaboost-lora"]

    @Test func whatCannotBeCombinedIsRefused() throws {
        let backbone = try SmallModel().backbone()
        try withTemporaryFolder { folder in
            func make(_ name: String, _ method: String = "lora", _ settings: KeyedList<JSON> = [:]) throws {
                let adapter = try adapter(method, settings, on: backbone)
                try adapter.randomise(seed: 1)
                try adapter.save(to: folder(name))
                adapter.detach()
            }
            try make("r8")
            try make("r4", "lora", ["r": 4])
            try make("dora", "dora", ["r": 4])
            try make("whole", "lora", ["modules_to_save": ["lm_head"]])
            func sentence(_ combination: AdapterCombination, _ names: String...) -> String {
                refusal { _ = try combination.combine(names.map { folder($0) }, to: folder("x")) { backbone } }
            }
            #expect(sentence(AdapterCombination(.linear), "r8", "r4").contains("ranks [8, 4]"))
            #expect(sentence(AdapterCombination(.ties), "r8", "r8").hasPrefix("density: "))
            #expect(sentence(AdapterCombination(.ties, density: 1.5), "r8").hasPrefix("density: "))
            #expect(sentence(AdapterCombination(.cat, weights: [1]), "r8", "r4").hasPrefix("weights: "))
            #expect(sentence(AdapterCombination(.cat, weights: [.nan]), "r8").hasPrefix("weights: "))
            #expect(sentence(AdapterCombination(.cat)).contains("at least one"))
            #expect(sentence(AdapterCombination(.cat), "r8", "dora").contains("thin factors"))
            #expect(sentence(AdapterCombination(.svd), "r8", "dora").contains("as large as the weight"))
            #expect(sentence(AdapterCombination(.svd), "whole").contains("lm_head.weight"))
            #expect(try !folder.contents().contains("x"))
            var approximate = AdapterCombination(.svd)
            approximate.rank = 4
            #expect(sentence(approximate, "r8", "dora").isEmpty)
        }
    }
}
