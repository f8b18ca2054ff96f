import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch

/// What a test of AdaLoRA must show; its forward pass is in `WeightParityTests`, its life in training in the generic
/// tests.
@Suite struct AdaLoRATests {
    private let model = SmallModel()
    private static let settings: KeyedList<JSON> = ["init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2]

    private func made(_ more: KeyedList<JSON> = [:], on backbone: any Backbone) throws -> Adapter {
        var settings = Self.settings
        for (key, value) in more { settings[key] = value }
        return try adapter("adalora", settings, on: backbone)
    }

    /// The strengths of all directions, layer by layer.
    private func strengths(_ adapter: Adapter) throws -> [[Float]] {
        try adapter.updates.map { try adapter.tensor($0.linear.path + ".lora_E").detached().values(as: Float.self) }
    }

    private func left(_ adapter: Adapter) throws -> Int {
        try strengths(adapter).joined().count { $0 != 0 }
    }

    /// Steps of gradient descent with what a trainer tells; `look` sees the gradients of each step.
    private func train(
        _ adapter: Adapter, _ backbone: any Backbone, _ steps: Range<Int>, of total: Int, _ learningRate: Double = 0.3,
        look: (Int) throws -> Void = { _ in }
    ) throws {
        let ids = try model.tokens()
        try adapter.trainingBegins(totalSteps: total)
        for step in steps {
            try adapter.stepBegins(step)
            try (nextTokenLoss(backbone, ids) + #require(try adapter.penalty())).backward()
            try adapter.gradientsAreReady(step)
            try withoutGrad {
                for trainable in adapter.trainables {
                    try trainable.tensor.add(#require(trainable.tensor.grad), times: -learningRate)
                }
            }
            try adapter.stepEnded(step)
            try look(step)
            try adapter.clearGradients()
        }
    }

    // MARK: - 1. The start

    @Test func atFirstOnlyTheStrengthsLearn() throws {
        let backbone = try model.backbone()
        let adapter = try made(on: backbone)
        try nextTokenLoss(backbone, model.tokens()).backward()
        for trainable in adapter.trainables {
            let isStrength = trainable.name.hasSuffix("lora_E")
            #expect(try isZero(#require(trainable.tensor.grad)) != isStrength, "\(trainable.name)")
        }
        let values = try Tensor.concatenate(
            adapter.trainables.filter { !$0.name.hasSuffix("lora_E") }.map { try $0.tensor.detached().reshaped([-1]) })
        let deviation = try values.squared().mean().item(as: Double.self).squareRoot()
        #expect(abs(deviation / 0.02 - 1) < 0.1)
    }

    // MARK: - 2. The budget

    @Test func theBudgetFallsByTheCube() throws {
        var method = AdaLoRA()
        (method.initialRank, method.targetRank, method.firstSteps, method.lastSteps) = (12, 4, 10, 20)
        func budget(_ step: Int) -> Int { method.budget(at: step, of: 110, layers: 6) }
        #expect(budget(0) == 72 && budget(10) == 72)
        // An eighth of the gap of 48 is left at half the way.
        #expect(budget(50) == 24 + 6)
        #expect(budget(90) == 24 && budget(110) == 24)
        #expect((0..<110).allSatisfy { budget($0) >= budget($0 + 1) })
    }

    // MARK: - 3. Cuts, 8. the last phase

    @Test(arguments: [1, 2]) func asManyDirectionsAreLeftAsTheBudgetSays(interval: Int) throws {
        let backbone = try model.backbone()
        let adapter = try made(["deltaT": JSON(interval)], on: backbone)
        let method = try #require(adapter.configuration.method as? AdaLoRA)
        var last: [[Bool]] = []
        try train(adapter, backbone, 0..<12, of: 12) { step in
            let number = step + 1
            if number == 10 || (number > 1 && number < 10 && number % interval == 0) {
                #expect(try left(adapter) == method.budget(at: number, of: 12, layers: 4), "step \(number)")
            }
            guard number >= 10 else { return }
            #expect(try left(adapter) == 2 * 4)
            let pattern = try strengths(adapter).map { $0.map { $0 != 0 } }
            #expect(last.isEmpty || last == pattern)
            last = pattern
        }
    }

    @Test func ranksGoWhereTheyAreNeeded() throws {
        let backbone = try model.backbone()
        let adapter = try made(["target_modules": ["q_proj", "v_proj", "down_proj"]], on: backbone)
        // Only one layer has anything to learn.
        let target = try #require(adapter.updates.first { $0.linear.path.hasSuffix("0.mlp.down_proj") })
        let update = try #require(target.update as? any LowRankUpdate)
        var stream = Seed(71).stream("aim")
        let aim = try Tensor.normal([target.linear.outFeatures, target.linear.inFeatures], from: &stream)
        try adapter.trainingBegins(totalSteps: 20)
        for step in 0..<20 {
            let fit = try (update.dense() - aim).squared().sum() * 0.05
            // The other layers' gradients are there, and tiny.
            let rest = try adapter.updates.filter { $0.linear !== target.linear }.map {
                try #require($0.update as? any LowRankUpdate).dense().squared().sum() * 1e-6
            }
            try rest.reduce(fit) { try $0 + $1 }.backward()
            try withoutGrad {
                for trainable in adapter.trainables {
                    try trainable.tensor.add(#require(trainable.tensor.grad), times: -0.5)
                }
            }
            try adapter.stepEnded(step)
            try adapter.clearGradients()
        }
        let pattern = try #require((adapter.exported().configuration.method as? AdaLoRA)?.rankPattern)
        let ranks = pattern.kept.map { ($0.key, $0.value.count { $0 }) }
        #expect(ranks.reduce(0) { $0 + $1.1 } == 2 * adapter.updates.count)
        #expect(ranks.first { $0.0.contains("0.mlp.down_proj") }?.1 == 4)
        #expect(Set(ranks.map(\.1)).count > 1)
    }

    // MARK: - 4. Scores

    @Test func scoresAreThoseOfTheValuesAfterTheStep() async throws {
        let backbone = try SmallModel(hidden: 2, heads: 1, keyValueHeads: 1, headDim: 2, layers: 1).backbone()
        let ids = try SmallModel().tokens()
        let adapter = try adapter(
            "adalora",
            [
                "init_r": 2, "target_r": 1, "tinit": 0, "target_modules": ["q_proj"], "beta1": 0.7, "beta2": 0.6,
                "init_lora_weights": false,
            ], on: backbone)
        var history = KeyedList<Tensor>()
        var scores: [[Double]] = []
        try adapter.trainingBegins(totalSteps: 9)
        for step in 0..<3 {
            try nextTokenLoss(backbone, ids).backward()
            try withoutGrad {
                for trainable in adapter.trainables {
                    try trainable.tensor.add(#require(trainable.tensor.grad), times: -0.4)
                }
            }
            for name in ["A", "B", "E"] {
                let tensor = try adapter.tensor("lora_" + name)
                history["\(step)/\(name).grad"] = try #require(tensor.grad).cloned()
                history["\(step)/\(name)"] = try tensor.detached().cloned()
            }
            try adapter.stepEnded(step)
            try adapter.clearGradients()
            func product(_ name: String) throws -> Tensor {
                let path = "base_model.model.model.layers.0.self_attn.q_proj.lora_\(name)."
                return try #require(adapter.buffers[path + "importance"])
                    * #require(adapter.buffers[path + "uncertainty"])
            }
            let sum = try product("E").reshaped([-1]) + product("A").mean([1]) + product("B").mean([0])
            scores.append(try sum.to(dtype: .float64).values())
        }
        let folder = try TemporaryFolder.lasting("adalora")
        try SafetensorsWriter.write(history, to: folder("history"))
        _ = try await Oracle.shared.call(
            "weights.adalora_scores",
            [
                "history": JSON(folder("history")), "output": JSON(folder("scores")), "steps": 3, "beta1": 0.7,
                "beta2": 0.6,
            ])
        for (step, found) in scores.enumerated() {
            let expected: [Double] = try storedTensor(folder("scores"), "\(step)").values()
            for (a, b) in zip(found, expected) { #expect(abs(a - b) <= 1e-5 * b, "step \(step)") }
            #expect(expected[0] != expected[1])
        }
    }

    // MARK: - 5. Directions come back

    @Test func aDirectionThatWasCutMayComeBack() throws {
        let backbone = try model.backbone()
        let adapter = try made(["deltaT": 3], on: backbone)
        var zeros: [Int] = []
        var revived = false
        try train(adapter, backbone, 0..<12, of: 14) { step in
            let flat = try Array(strengths(adapter).joined())
            if (step + 1) % 3 == 0 { zeros = flat.indices.filter { flat[$0] == 0 } }
            if (step + 1) % 3 == 1, !zeros.isEmpty, step < 11 {
                let gradients = try adapter.updates.flatMap {
                    try #require(try adapter.tensor($0.linear.path + ".lora_E").grad).values(as: Float.self)
                }
                #expect(zeros.contains { gradients[$0] != 0 })
                revived = revived || zeros.contains { flat[$0] != 0 }
            }
        }
        #expect(revived)
    }

    // MARK: - 6. Orthogonality

    @Test func thePenaltyIsTheDistanceFromOrthogonality() throws {
        let backbone = try model.backbone()
        let adapter = try made(["orth_reg_weight": 0.25], on: backbone)
        func penalty() throws -> Double { try #require(try adapter.penalty()).item() }
        // The definition, factor by factor.
        let factors = adapter.trainables.filter { !$0.name.hasSuffix("lora_E") }
        let distances = try factors.map { factor in
            let rows =
                try factor.name.hasSuffix("lora_A") ? factor.tensor.detached() : factor.tensor.detached().transposed()
            return try (rows.matmul(rows.transposed()) - Tensor.eye(4)).norm().item(as: Double.self)
        }
        #expect(abs(try penalty() - 0.25 * distances.reduce(0, +) / Double(distances.count)) < 1e-6)
        let before = try penalty()
        for _ in 0..<20 {
            try #require(try adapter.penalty()).backward()
            try adapter.descend(0.5)
        }
        #expect(try penalty() < before)
        try withoutGrad {
            for factor in factors {
                let isA = factor.name.hasSuffix("lora_A")
                let rows = try callTensors(
                    "aten::linalg_qr", isA ? factor.tensor.transposed() : factor.tensor, "reduced")[0]
                try factor.tensor.copy(from: isA ? rows.transposed() : rows)
            }
        }
        #expect(try penalty() < 1e-6)
        #expect(try made(["orth_reg_weight": 0], on: model.backbone()).penalty() == nil)
    }

    // MARK: - 7. What is saved

    @Test func theSavedAdapterHasTheLeftDirectionsOnly() throws {
        try withTemporaryFolder { folder in
            let backbone = try model.backbone()
            let ids = try model.tokens()
            let trained = try made(["lora_alpha": 9], on: backbone)
            try train(trained, backbone, 0..<12, of: 12)
            let adapted = try backbone.logits(ids)
            #expect(try relativeGap(trained.whileMerged { try backbone.logits(ids) }, adapted) < 1e-5)
            try trained.save(to: folder("pruned"))
            let file = try SafetensorsFile(path: folder("pruned") + "/adapter_model.safetensors")
            #expect(file.tensors.filter { $0.key.hasSuffix("lora_E") }.reduce(0) { $0 + $1.value.shape[0] } == 8)
            trained.detach()
            let loaded = try Adapter.load(from: folder("pruned"), onto: backbone)
            #expect(try relativeGap(backbone.logits(ids), adapted) < 1e-5)
            #expect(try relativeGap(loaded.whileMerged { try backbone.logits(ids) }, adapted) < 1e-5)
            #expect(
                loaded.parameterCount == 8 * (32 + 1)
                    + file.tensors.reduce(0) {
                        $0 + ($1.key.hasSuffix("lora_B") ? $1.value.elementCount : 0)
                    })
            // It is trained on without further cuts.
            let ranks = try left(loaded)
            try loaded.takeSteps(0..<3, on: ids)
            #expect(try left(loaded) == ranks)
            try loaded.save(to: folder("again"))
            let again = try SafetensorsFile(path: folder("again") + "/adapter_model.safetensors")
            #expect(again.tensors.mapShapes() == file.tensors.mapShapes())
        }
    }

    @Test func countsEveryDirection() throws {
        let adapter = try adapter("adalora", ["init_r": 3, "target_r": 2], on: SmallModel.robertaBase.backbone())
        #expect(
            refusal { _ = try PEFTTests.adapter("adalora", ["init_r": 3], on: model.backbone()) }.contains("target_r"))
        #expect(adapter.parameterCount == 24 * 3 * 1_537)
    }

    // MARK: - The schedule

    @Test func itIsNotTrainedWithoutItsSchedule() throws {
        let backbone = try model.backbone()
        let adapter = try made(on: backbone)
        #expect(refusal { try adapter.stepBegins(0) }.contains("trainingBegins(totalSteps:)"))
        let short = refusal { try adapter.trainingBegins(totalSteps: 3) }
        #expect(short.hasPrefix("tinit and tfinal: expected together less than the 3 steps of the run"))
        adapter.detach()
        let other = try made(["total_step": 9], on: backbone)
        #expect(
            refusal { try other.trainingBegins(totalSteps: 8) }.hasPrefix("total_step: the run has 8 steps, found 9"))
        try other.trainingBegins(totalSteps: 9)
    }

    @Test func badSettingsAreRefused() throws {
        func sentence(_ settings: KeyedList<JSON>) -> String {
            refusal { _ = try AdapterConfiguration(method: "adalora", settings: settings) }
        }
        #expect(sentence(["target_r": 13]) == "target_r: expected at most init_r, which is 12, found 13")
        #expect(
            sentence(["beta1": 1]).hasPrefix("beta1: expected") && sentence(["beta2": 0]).hasPrefix("beta2: expected"))
        #expect(sentence(["tinit": -1]).hasPrefix("tinit: expected a whole number of steps"))
        #expect(sentence(["orth_reg_weight": -0.5]).hasPrefix("orth_reg_weight: expected"))
        #expect(
            sentence(["rank_pattern": ["q_proj.lora_E": [true]]]).hasPrefix("rank_pattern: expected init_r, 12, values")
        )
        let flags = JSON((0..<12).map { _ in JSON.bool(true) })
        let unknown = refusal {
            _ = try adapter("adalora", ["rank_pattern": ["q_proj.lora_E": flags]], on: model.backbone())
        }
        #expect(unknown.hasPrefix("rank_pattern: q_proj.lora_E belongs to no selected layer"))
    }
}

extension KeyedList<SafetensorsTensor> {
    fileprivate func mapShapes() -> [String: [Int]] {
        var shapes: [String: [Int]] = [:]
        for (name, tensor) in self { shapes[name] = tensor.shape }
        return shapes
    }
}

/// AdaLoRA in peft: folders both ways, and the same training with peft's allocator.
@Suite(.serialized) struct AdaLoRAExchangeTests {
    private static let cases: [(kind: String, config: KeyedList<JSON>)] = [
        (
            "llama",
            ["init_r": 5, "target_r": 3, "lora_alpha": 7, "total_step": 9, "target_modules": ["q_proj", "v_proj"]]
        ),
        (
            "qwen2",
            [
                "init_r": 4, "target_r": 2, "lora_alpha": 0, "total_step": 9, "target_modules": "all-linear",
                "bias": "lora_only", "orth_reg_weight": 0, "lora_dropout": 0.1,
            ]
        ),
    ]

    @Test(arguments: cases.indices) func bothWays(index: Int) async throws {
        let (kind, config) = Self.cases[index]
        try await FolderExchange(
            method: "adalora", peftType: "ADALORA", kind: kind, config: config, seed: index + 1
        ).check()
    }

    /// The same start, data and steps give the same losses, cuts and values; what peft saves is read, zero ranks too.
    @Test(arguments: [1, 2]) func peftsAllocatorCutsTheSame(interval: Int) async throws {
        let model = try await TinyModels.shared.folder("llama")
        let folder = try TemporaryFolder.lasting("adalora")
        let backbone = try Checkpoint(model).backbone(dtype: .float32)
        let ids = try tokenTensor(exampleTokens)
        let settings: KeyedList<JSON> = [
            "init_r": 3, "target_r": 1, "tinit": 2, "tfinal": 3, "deltaT": JSON(interval), "total_step": 12,
            "target_modules": ["q_proj", "v_proj", "o_proj"], "lora_alpha": 16,
        ]
        let adapter = try adapter("adalora", settings, on: backbone)
        try adapter.save(to: folder("start"), baseModel: model)
        let losses = try await Oracle.shared.call(
            "weights.train_adalora",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(folder("start")), "folder": JSON(folder("peft")),
                "ids": JSON(tokens: exampleTokens), "steps": 12, "lr": 0.5,
            ])
        try adapter.trainingBegins(totalSteps: 12)
        for step in 0..<12 {
            let loss = try nextTokenLoss(backbone, ids) + #require(try adapter.penalty())
            let expected = try #require(losses.array?[step].double)
            #expect(abs(try loss.item(as: Double.self) - expected) < 1e-4 * expected, "step \(step)")
            try loss.backward()
            try withoutGrad {
                for trainable in adapter.trainables {
                    try trainable.tensor.add(#require(trainable.tensor.grad), times: -0.5)
                }
            }
            try adapter.stepEnded(step)
            try adapter.clearGradients()
        }
        try adapter.save(to: folder("graft"), baseModel: model)
        let configurations = try ["graft", "peft"].map { try JSON.read(path: folder($0) + "/adapter_config.json") }
        let patterns = configurations.map { $0["rank_pattern"]?.object ?? [:] }
        #expect(!patterns[0].isEmpty && patterns[0].keys.sorted() == patterns[1].keys.sorted())
        for (key, value) in patterns[0] { #expect(value == patterns[1][key], "\(key)") }
        let files = try ["graft", "peft"].map { try SafetensorsFile(path: folder($0) + "/adapter_model.safetensors") }
        #expect(files[0].tensors.keys.sorted() == files[1].tensors.keys.sorted())
        for (name, tensor) in files[0].tensors {
            let other = try files[1].tensor(name)
            try #require(tensor.shape == other.shape, "\(name)")
            guard tensor.elementCount > 0 else { continue }
            #expect(try relativeGap(tensor.tensor(), other.tensor()) < 1e-3, "\(name)")
        }
        let logits = try withoutGrad { try backbone.logits(ids) }
        adapter.detach()
        _ = try Adapter.load(from: folder("peft"), onto: backbone)
        #expect(try relativeGap(withoutGrad { try backbone.logits(ids) }, logits) < 1e-4)
        let report = try await Oracle.shared.call(
            "weights.logits",
            [
                "model_folder": JSON(model), "adapter_folder": JSON(folder("graft")),
                "ids": JSON(tokens: exampleTokens),
                "output": JSON(folder("logits")),
            ])
        #expect(report["missing"] == [] && report["unexpected"] == [])
        #expect(try relativeGap(storedTensor(folder("logits"), "logits"), logits) < 1e-5)
    }
}
