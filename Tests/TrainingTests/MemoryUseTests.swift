import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

/// What runs do with memory, and with methods that train layers in turns.
@Suite(.serialized) struct MemoryUseTests {
    private func recipe(_ folder: TemporaryFolder, method: String = "lora") async throws -> Recipe {
        var recipe = Recipe(
            model: try await ChatModels.shared.folder(),
            data: try folder.write(textRows(14, seed: 2), to: "train.jsonl"), method: method,
            settings: ["r": 4])
        recipe.learningRate = 5e-3
        recipe.batchSize = 4
        recipe.dtype = .float32
        recipe.device = .cpu
        recipe.threads = 1
        recipe.steps = 6
        return recipe
    }

    private func tensors(_ folder: String) throws -> KeyedList<Tensor> {
        var result = KeyedList<Tensor>()
        for (name, tensor) in try SafetensorsFile(path: folder + "/adapter_model.safetensors").tensors {
            result[name] = try tensor.tensor()
        }
        return result
    }

    @Test func aRunWithLittleMemoryLearnsTheSame() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.settings["lora_dropout"] = 0.1
            recipe.settings["target_modules"] = "all-linear"
            recipe.packing = true
            recipe.memory = .fast
            try Trainer.run(recipe, output: folder("fast"), showsProgress: false)
            recipe.memory = .low
            try Trainer.run(recipe, output: folder("low"), showsProgress: false)
            recipe.memory = .auto
            recipe.gradientCheckpointing = .blocks(1)
            try Trainer.run(recipe, output: folder("one"), showsProgress: false)
            for run in ["low", "one"] {
                let own = try tensors(folder(run + "/adapter"))
                for (name, tensor) in try tensors(folder("fast/adapter")) {
                    // The plain run adds a sublayer's output within the norm that follows, so sums round otherwise.
                    let gap: Double = try (#require(own[name]) - tensor).norm().item() / tensor.norm().item()
                    #expect(gap < 1e-4, "\(name)")
                }
            }
            // What was decided is in the folder, so that a resumed run does the same.
            let written = try ["fast", "low", "one"].map { try Recipe(path: RunLayout(folder($0)).recipe) }
            #expect(written.map(\.memory) == [.fast, .low, .auto])
            #expect(written.map(\.gradientCheckpointing) == [GradientCheckpointing.none, .all, .blocks(1)])
        }
    }

    @Test func theFewestBlocksWithWhichAStepFitsAreComputedAgain() async throws {
        try await withTemporaryFolder { folder in
            let base = try await recipe(folder)
            func plan(_ change: (inout Recipe) -> Void) throws -> TrainingPlan {
                var recipe = base
                change(&recipe)
                return try TrainingPlan(recipe)
            }
            let (fast, low) = (try plan { $0.memory = .fast }, try plan { $0.memory = .low })
            let auto = try plan { _ in }
            #expect(auto.recipe.gradientCheckpointing == GradientCheckpointing.none)
            #expect(auto.text().contains("kept for the backward pass (memory: auto)"))
            #expect(low.text().contains("all computed again"))
            func activations(_ plan: TrainingPlan) throws -> Int {
                try #require(plan.memory.first { $0.name == "activations" }?.bytes)
            }
            #expect(try activations(low) < activations(fast))
            // With less and less memory more and more blocks.
            let choices = try [1 << 40, 60_000_000, 0].map { try base.checkpointing(available: $0) }
            #expect(choices.first == GradientCheckpointing.none && choices.last == .all)
            let layers = 2
            for count in 0...layers {
                let kept = try plan {
                    $0.gradientCheckpointing = count == 0 ? GradientCheckpointing.none : .blocks(count)
                }
                #expect(try activations(kept) <= activations(fast))
            }
        }
    }

    @Test func wishesThatContradictAreRefused() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.memory = .low
            recipe.gradientCheckpointing = GradientCheckpointing.none
            #expect(message { try recipe.validate() }.contains("give one of them"))
            recipe.gradientCheckpointing = .all
            #expect(message { try recipe.validate() }.isEmpty)
            recipe.method = "meft"
            recipe.gradientCheckpointing = nil
            #expect(message { _ = try TrainingPlan(recipe) }.contains("memory low does not go with the method meft"))
            recipe.memory = .auto
            let plan = try TrainingPlan(recipe)
            #expect(plan.text().contains("run as the method says"))
        }
    }

    // MARK: IST

    @Test func aResumedISTRunEqualsAnUninterruptedOne() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder, method: "ist")
            recipe.settings["score_interval"] = 2
            recipe.settings["update_interval"] = 3
            recipe.settings["score_rows"] = 5
            recipe.settings["update_layers"] = 1
            recipe.steps = 9
            recipe.saveSteps = 4
            recipe.saveTotalLimit = nil
            let whole = folder("whole")
            try Trainer.run(recipe, output: whole, showsProgress: false)
            let killed = folder("killed")
            try FileManager.default.copyItem(atPath: whole, toPath: killed)
            try FileManager.default.removeItem(atPath: RunLayout(killed).adapter)
            for step in [8, 9] { try FileManager.default.removeItem(atPath: RunLayout(killed).checkpoint(step: step)) }
            try Trainer.resume(killed, showsProgress: false)
            let resumed = try tensors(RunLayout(killed).adapter)
            for (name, tensor) in try tensors(RunLayout(whole).adapter) {
                #expect(try resumed[name]?.isIdentical(to: tensor) == true, "\(name)")
            }
            let states = try [whole, killed].map {
                try SafetensorsFile(path: RunLayout($0).checkpoint(step: 9) + "/training_state.safetensors")
            }
            for (name, tensor) in states[0].tensors {
                #expect(try states[1].tensor(name).tensor().isIdentical(to: tensor.tensor()), "\(name)")
            }
            let scores: [Double] = try states[0].tensor("ist.scores").tensor().values()
            #expect(scores.contains { $0 != 0 })
            #expect(try MetricsLog.read(path: RunLayout(whole).metrics).count == 9)
        }
    }

    /// A layer that is off is not stepped at all: no decay, and its moments wait, as torch has it without a gradient.
    @Test func layersInTurnsLearnAsInTorch() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder, method: "ist")
            recipe.settings["update_layers"] = 1
            recipe.settings["use_importance"] = false
            recipe.settings["init_lora_weights"] = false
            recipe.weightDecay = 0.1
            recipe.maxGradNorm = 0.5
            recipe.schedule = .constant
            recipe.saveSteps = 1
            recipe.saveTotalLimit = nil
            let model = try LanguageModel.load(recipe.model, dtype: .float32, device: .cpu)
            let adapter = try Adapter(recipe.adapterConfiguration(), on: model.backbone, seed: Seed(42))
            try adapter.save(to: folder("initial"), baseModel: recipe.model)
            adapter.detach()
            try Trainer.run(recipe, output: folder("run"), showsProgress: false)
            let layout = RunLayout(folder("run"))
            let active = try (1...6).map { step -> [Int] in
                let path = layout.checkpoint(step: step) + "/training_state.safetensors"
                let flags: [Int] = try SafetensorsFile(path: path).tensor("ist.active").tensor().values()
                return flags.indices.filter { flags[$0] == 1 }
            }
            #expect(Set(active.flatMap { $0 }).count > 1 && active.allSatisfy { $0.count == 1 })
            let data = try model.dataset(recipe.data)
            let steps = (0..<6).map { step -> [Example] in
                var stream = Seed(42).stream("data/epoch/\(step / 4)")
                let order = stream.permutation(14)
                return order[(step % 4 * 4)..<min(step % 4 * 4 + 4, 14)].map { data.examples[$0] }
            }
            let losses = try await Oracle.shared.call(
                "execution.alternating",
                [
                    "folder": JSON(recipe.model), "adapter": JSON(folder("initial")),
                    "steps": JSON(steps.map { JSON(rows: $0) }), "active": JSON(tokens: active), "lr": 5e-3,
                    "weight_decay": 0.1, "clip": 0.5, "output": JSON(folder("expected.safetensors")),
                ])
            for (index, line) in try MetricsLog.read(path: layout.metrics).enumerated() {
                #expect(abs(try #require(line.loss) - #require(losses[index]?.double)) < 1e-5)
            }
            let expected = try SafetensorsFile(path: folder("expected.safetensors"))
            for (name, tensor) in try tensors(layout.adapter) {
                #expect(try largestDifference(tensor, expected.tensor(name).tensor()) < 1e-5, "\(name)")
            }
        }
    }
}
