import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite(.serialized) struct TrainerTests {
    /// A recipe for a tiny model; one thread, so that sums have one order.
    private func recipe(_ folder: TemporaryFolder, rows: Int = 14, seed: UInt64 = 2) async throws -> Recipe {
        var recipe = Recipe(
            model: try await ChatModels.shared.folder(),
            data: try folder.write(textRows(rows, seed: seed), to: "train.jsonl"),
            settings: ["r": 4, "target_modules": "all-linear", "init_lora_weights": false])
        recipe.learningRate = 5e-3
        recipe.batchSize = 4
        recipe.dtype = .float32
        recipe.device = .cpu
        recipe.threads = 1
        return recipe
    }

    private func tensors(_ folder: String) throws -> KeyedList<Tensor> {
        var result = KeyedList<Tensor>()
        for (name, tensor) in try SafetensorsFile(path: folder + "/adapter_model.safetensors").tensors {
            result[name] = try tensor.tensor()
        }
        return result
    }

    private func losses(_ run: String) throws -> [Double] {
        try MetricsLog.read(path: RunLayout(run).metrics).compactMap(\.loss)
    }

    @Test func aRunIsThatOfTorchAndPeft() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.steps = 10
            recipe.weightDecay = 0.05
            recipe.maxGradNorm = 0.7
            recipe.warmupSteps = 2
            recipe.schedule = .cosine
            let model = try LanguageModel.load(recipe.model, dtype: .float32, device: .cpu)
            let adapter = try Adapter(recipe.adapterConfiguration(), on: model.backbone, seed: Seed(42))
            try adapter.save(to: folder("initial"), baseModel: recipe.model)
            adapter.detach()
            let result = try Trainer.run(recipe, output: folder("run"), showsProgress: false)

            // The order of the rows is a function of the seed and the epoch alone.
            let data = try model.dataset(recipe.data)
            let steps = (0..<10).map { step -> [Example] in
                var stream = Seed(42).stream("data/epoch/\(step / 4)")
                let order = stream.permutation(14)
                return order[(step % 4 * 4)..<min(step % 4 * 4 + 4, 14)].map { data.examples[$0] }
            }
            let schedule = try recipe.makeSchedule(totalSteps: 10)
            let answer = try await Oracle.shared.call(
                "training.train",
                [
                    "folder": JSON(recipe.model), "adapter": JSON(folder("initial")),
                    "steps": JSON(steps.map { JSON(rows: $0) }),
                    "lrs": JSON((0..<10).map { JSON(5e-3 * schedule.factor(at: $0)) }), "weight_decay": 0.05,
                    "clip": 0.7, "output": JSON(folder("expected.safetensors")),
                ])
            let metrics = try MetricsLog.read(path: RunLayout(folder("run")).metrics)
            #expect(metrics.count == 10)
            for (index, line) in metrics.enumerated() {
                let loss = try #require(answer["losses"]?[index]?.double)
                let norm = try #require(answer["norms"]?[index]?.double)
                #expect(abs(try #require(line.loss) - loss) < 1e-5, "step \(line.step)")
                #expect(abs(try #require(line.gradNorm) - norm) < 1e-4 * norm, "step \(line.step)")
            }
            let expected = try SafetensorsFile(path: folder("expected.safetensors"))
            for (name, tensor) in try tensors(folder("run/adapter")) {
                #expect(try largestDifference(tensor, expected.tensor(name).tensor()) < 1e-5, "\(name)")
            }
            #expect(result.steps == 10)
            #expect(result.loss == metrics.last?.loss)
            #expect(result.trainableParameters == adapter.parameterCount)
            // The loss fell, or nothing was learnt.
            #expect(try #require(metrics.last?.loss) < #require(metrics.first?.loss))
        }
    }

    @Test func aResumedRunEqualsAnUninterruptedOneBitForBit() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.steps = 12
            recipe.saveSteps = 5
            recipe.saveTotalLimit = nil
            recipe.loggingSteps = 3
            recipe.evalSteps = 4
            recipe.evalData = recipe.data
            recipe.settings["lora_dropout"] = 0.1
            recipe.settings["loraplus_lr_ratio"] = 4
            recipe.gradientAccumulationSteps = 2
            recipe.batchSize = 2
            let whole = folder("whole")
            try Trainer.run(recipe, output: whole, showsProgress: false)
            #expect(try RunLayout(whole).checkpoints().map(\.step) == [5, 10, 12])

            // As if the process had been killed after step 8: one checkpoint, later lines, a torn checkpoint.
            let killed = folder("killed")
            try FileManager.default.copyItem(atPath: whole, toPath: killed)
            let layout = RunLayout(killed)
            try FileManager.default.removeItem(atPath: layout.adapter)
            try FileManager.default.removeItem(atPath: layout.checkpoint(step: 12))
            let torn = layout.checkpoint(step: 10) + "/training_state.safetensors"
            var bytes = try Data(contentsOf: URL(fileURLWithPath: torn))
            bytes[bytes.count - 1] ^= 1
            try bytes.write(to: URL(fileURLWithPath: torn))
            let result = try Trainer.resume(killed, showsProgress: false)
            #expect(result.steps == 12)
            #expect(result.evaluationBefore == nil)

            let (expected, found) = (try tensors(whole + "/adapter"), try tensors(killed + "/adapter"))
            #expect(expected.keys == found.keys)
            for (name, tensor) in expected { #expect(try tensor.isIdentical(to: #require(found[name])), "\(name)") }
            func curves(_ run: String) throws -> [[Double?]] {
                try MetricsLog.read(path: RunLayout(run).metrics).map {
                    [
                        Double($0.step), $0.epoch, $0.loss, $0.evalLoss, $0.learningRate, $0.gradNorm,
                        $0.tokens.map(Double.init),
                    ]
                }
            }
            #expect(try curves(whole) == curves(killed))
            #expect(try curves(whole).count == 8)
            #expect(try RunLayout(killed).checkpoints().map(\.step) == [5, 10, 12])
        }
    }

    @Test func aRunWithoutCheckpointBeginsAnewAndAFinishedOneStays() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.steps = 3
            try Trainer.run(recipe, output: folder("run"), showsProgress: false)
            let before = try tensors(folder("run/adapter"))
            try Trainer.resume(folder("run"), showsProgress: false)
            #expect(try losses(folder("run")).count == 3)
            try FileManager.default.removeItem(atPath: folder("run/checkpoints"))
            try Trainer.resume(folder("run"), showsProgress: false)
            #expect(try losses(folder("run")).count == 3)
            for (name, tensor) in try tensors(folder("run/adapter")) {
                #expect(try tensor.isIdentical(to: #require(before[name])))
            }
        }
    }

    @Test func aResumedRunKeepsToItsRecipeAndData() async throws {
        try await withTemporaryFolder { folder in
            var begun = try await recipe(folder)
            begun.steps = 2
            let run = folder("run")
            try Trainer.run(begun, output: run, showsProgress: false)
            func refusal(_ change: (inout Recipe) -> Void) throws -> String {
                var recipe = try Recipe(path: RunLayout(run).recipe)
                change(&recipe)
                return message { try Trainer.resume(run, recipe: recipe, showsProgress: false) }
            }
            #expect(
                try refusal { $0.learningRate = 1 }.contains("learning_rate is 1, but the run was begun with 0.005"))
            #expect(try refusal { $0.settings["r"] = 5 }.contains("settings, r is 5, but the run was begun with 4"))
            #expect(try refusal { $0.steps = 4 }.contains("steps is 4, but the run was begun with 2"))
            #expect(try refusal { $0.seed = 7 }.contains("seed"))
            #expect(try refusal { $0.loggingSteps = 9 }.isEmpty)
            let data = begun.data
            try FileManager.default.removeItem(atPath: data)
            try folder.write(textRows(14, seed: 99), to: "train.jsonl")
            #expect(try refusal { _ in }.contains("the data have changed"))
            #expect(message { try Trainer.resume(folder("none"), showsProgress: false) }.contains("no run to resume"))
            #expect(
                message { try Trainer.run(begun, output: run, showsProgress: false) }.contains("holds an earlier run"))
        }
    }

    @Test func aRunWithAConstantScheduleCanGrow() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.schedule = .constant
            recipe.steps = 7
            try Trainer.run(recipe, output: folder("long"), showsProgress: false)
            recipe.steps = 4
            try Trainer.run(recipe, output: folder("grown"), showsProgress: false)
            recipe.steps = 7
            try Trainer.resume(folder("grown"), recipe: recipe, showsProgress: false)
            #expect(try losses(folder("grown")) == losses(folder("long")))
            let grown = try tensors(folder("grown/adapter"))
            for (name, tensor) in try tensors(folder("long/adapter")) {
                #expect(try tensor.isIdentical(to: #require(grown[name])))
            }
        }
    }

    @Test func accumulationChangesNothingButRounding() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder, rows: 20)
            recipe.steps = 5
            (recipe.batchSize, recipe.gradientAccumulationSteps) = (8, 1)
            try Trainer.run(recipe, output: folder("a"), showsProgress: false)
            (recipe.batchSize, recipe.gradientAccumulationSteps) = (1, 8)
            try Trainer.run(recipe, output: folder("b"), showsProgress: false)
            (recipe.batchSize, recipe.gradientAccumulationSteps) = (3, 1)
            let (a, b) = (try losses(folder("a")), try losses(folder("b")))
            #expect(a.count == 5)
            for (one, other) in zip(a, b) { #expect(abs(one - other) < 1e-5) }
            let other = try tensors(folder("b/adapter"))
            for (name, tensor) in try tensors(folder("a/adapter")) {
                #expect(try largestDifference(tensor, #require(other[name])) < 1e-4)
            }
        }
    }

    #if compiler(>=6.3)
    @Test func aSignalEndsTheRunAfterItsStepWithACheckpoint() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.schedule = .constant
            recipe.steps = 1_000_000
            recipe.saveSteps = 2
            let (path, run) = (folder("recipe.yaml"), folder("run"))
            try recipe.yaml().write(toFile: path, atomically: true, encoding: .utf8)
            // In a process of its own: a signal reaches every run of a process.
            await #expect(processExitsWith: .success) { [path = path as String, run = run as String] in
                var recipe = try Recipe(path: path)
                let signaller = Task.detached {
                    // A checkpoint tells that the loop, and with it the handler, is there.
                    while try RunLayout(run).checkpoints().isEmpty { try await Task.sleep(for: .milliseconds(5)) }
                    kill(getpid(), SIGTERM)
                }
                let result = try Trainer.run(recipe, output: run, showsProgress: false)
                _ = try await signaller.value
                #expect(result.isInterrupted)
                #expect(result.steps >= 2)
                #expect(try RunLayout(run).checkpoints().last?.step == result.steps)
                #expect(!FileManager.default.fileExists(atPath: RunLayout(run).adapter))
                recipe.steps = result.steps + 2
                let resumed = try Trainer.resume(run, recipe: recipe, showsProgress: false)
                #expect(!resumed.isInterrupted)
                #expect(try MetricsLog.read(path: RunLayout(run).metrics).count == result.steps + 2)
            }
        }
    }
    #endif

    @Test func aLossThatIsNoNumberStopsTheRun() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.steps = 20
            recipe.learningRate = 1e5
            recipe.maxGradNorm = 0
            let text = message { try Trainer.run(recipe, output: folder("run"), showsProgress: false) }
            #expect(text.contains("step "), "\(text)")
            #expect(text.contains("lower learning_rate"), "\(text)")
            #expect(!FileManager.default.fileExists(atPath: folder("run/adapter")))
        }
    }

    @Test func aMistakeBeforeTheFirstStepLeavesNoFolder() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.data = folder("missing.jsonl")
            #expect(
                message { try Trainer.run(recipe, output: folder("run/deep"), showsProgress: false) }.contains(
                    "missing.jsonl"))
            #expect(!FileManager.default.fileExists(atPath: folder("run")))
        }
    }

    @Test func aPlanSaysWhatTheRunWillDo() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.epochs = 2
            recipe.evalData = recipe.data
            let plan = try TrainingPlan(recipe)
            let result = try Trainer.run(recipe, output: folder("run"), showsProgress: false)
            #expect(plan.steps == 8)
            #expect(result.totalSteps == plan.steps)
            #expect(result.trainableParameters == plan.trainableParameters)
            #expect(plan.rows == 14)
            let file = try FileManager.default.attributesOfItem(atPath: folder("run/adapter/adapter_model.safetensors"))
            let size = Double(try #require(file[.size] as? Int))
            #expect(abs(Double(plan.adapterFileBytes) - size) < 0.1 * size)
            #expect(result.tokens == 2 * plan.tokens)
            #expect(plan.peakBytes > plan.memory.map(\.bytes).max() ?? 0)
            // The first row is a text: all but its first token is trained.
            #expect(plan.firstRow.segments.map(\.isSupervised) == [false, true])
            #expect(plan.text().contains("]]"))
            #expect(plan.text(isColoured: true).contains("\u{1B}[32m"))
            #expect(plan.json["steps"] == 8)
            #expect(!FileManager.default.fileExists(atPath: folder("plan")))
        }
    }

    /// Whatever the registry has, it learns, and its state is whole.
    @Test(arguments: MethodRegistry.entries.map(\.name))
    func everyMethodTrainsAndResumes(_ method: String) async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.method = method
            // Blocks and budgets as large as by default do not fit into the tiny model.
            let small: [String: KeyedList<JSON>] = ["miss": ["r": 4], "bone": ["r": 4], "id3": ["budget": 500]]
            recipe.settings = small[method] ?? [:]
            recipe.steps = 5
            recipe.saveSteps = 3
            recipe.schedule = .constant
            try Trainer.run(recipe, output: folder("run"), showsProgress: false)
            let whole = try tensors(folder("run/adapter"))
            #expect(try Set(losses(folder("run"))).count == 5)
            try FileManager.default.removeItem(atPath: RunLayout(folder("run")).checkpoint(step: 5))
            try Trainer.resume(folder("run"), showsProgress: false)
            let resumed = try tensors(folder("run/adapter"))
            #expect(whole.keys == resumed.keys)
            for (name, tensor) in whole { #expect(try tensor.isIdentical(to: #require(resumed[name])), "\(name)") }
        }
    }

    @Test func theBestAdapterIsKept() async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder)
            recipe.evalData = try folder.write(textRows(5, seed: 77), to: "eval.jsonl")
            // So large a rate that the held-out loss falls and rises again.
            recipe.learningRate = 0.05
            recipe.schedule = .constant
            recipe.steps = 12
            recipe.evalSteps = 1
            recipe.saveSteps = 1
            recipe.loadBestModelAtEnd = true
            try Trainer.run(recipe, output: folder("run"), showsProgress: false)
            let layout = RunLayout(folder("run"))
            let measured = try MetricsLog.read(path: layout.metrics).compactMap { line in
                line.evalLoss.flatMap { line.step > 0 ? (line.step, $0) : nil }
            }
            let best = try #require(measured.min { $0.1 < $1.1 })
            #expect(measured.count == 12)
            try #require(best.0 < 12)
            // The checkpoint of the best evaluation outlives the two newest ones, and all three adapters are one.
            #expect(try layout.checkpoints().map(\.step) == Array(Set([best.0, 11, 12])).sorted())
            let kept = try tensors(layout.checkpoint(step: best.0))
            for place in [layout.best, layout.adapter] {
                let found = try tensors(place)
                #expect(found.keys == kept.keys)
                for (name, tensor) in kept { #expect(try tensor.isIdentical(to: #require(found[name])), "\(name)") }
            }
            #expect(PathKind(layout.adapter + "/evaluation.json") == .missing)
            let model = try LanguageModel.load(recipe.model, dtype: .float32, device: .cpu)
            _ = try Adapter.load(from: layout.adapter, onto: model.backbone)
            #expect(try abs(model.evaluate(on: #require(recipe.evalData)).loss - best.1) < 1e-6)

            recipe.evalData = nil
            #expect(message { try recipe.validate() }.contains("load_best_model_at_end"))
        }
    }

    @Test func aTrainableThatNothingUsesIsNamed() async throws {
        try await withTemporaryFolder { folder in
            let recipe = try await recipe(folder)
            let model = try LanguageModel.load(recipe.model, dtype: .float32, device: .cpu)
            let adapter = try Adapter(AdapterConfiguration(Forgetful()), on: model.backbone, seed: Seed(1))
            let text = message {
                try model.train(adapter, on: recipe.data, output: folder("run"), showsProgress: false)
            }
            #expect(text.contains("step 1: 1 of"), "\(text)")
            #expect(text.contains("the first is forgotten"), "\(text)")
        }
    }

    @Test func theLibraryTrainsInALoadedModel() async throws {
        try await withTemporaryFolder { folder in
            let recipe = try await recipe(folder)
            let model = try LanguageModel.load(recipe.model, dtype: .float32, device: .cpu)
            let before = try model.evaluate(on: recipe.data).loss
            let adapter = try model.attach("rslora", ["r": 4, "target_modules": "all-linear"])
            #expect(try abs(model.evaluate(on: recipe.data).loss - before) < 1e-6)
            try model.train(adapter, on: recipe.data, steps: 8, output: folder("run"), showsProgress: false) {
                $0.learningRate = 5e-3
            }
            let after = try model.evaluate(on: recipe.data).loss
            #expect(after < before - 0.1)
            // The written recipe runs again, and the saved adapter is the trained one.
            let again = try Recipe(path: folder("run/recipe.yaml"))
            #expect(again.settings["use_rslora"] == true)
            try Trainer.run(again, output: folder("again"), showsProgress: false)
            adapter.detach()
            let loaded = try Adapter.load(from: folder("run/adapter"), onto: model.backbone)
            #expect(try abs(model.evaluate(on: recipe.data).loss - after) < 1e-6)
            let other = try tensors(folder("again/adapter"))
            for (name, tensor) in try tensors(folder("run/adapter")) {
                #expect(try largestDifference(tensor, #require(other[name])) < 1e-5)
            }
            loaded.detach()
            #expect(try abs(model.evaluate(on: recipe.data).loss - before) < 1e-6)
        }
    }
}

/// LoRA with a tensor that it does not use.
private struct Forgetful: PEFT.Method {
    static let peftType = "FORGETFUL"
    static let fields: [Field<Forgetful>] = []

    func attach(to points: AttachPoints, seed: Seed) throws -> PEFT.Attachment {
        var attachment = try LoRA().attach(to: points, seed: seed)
        attachment.trainables.append(try Trainable("forgotten", Tensor.zeros([3])))
        return attachment
    }
}
