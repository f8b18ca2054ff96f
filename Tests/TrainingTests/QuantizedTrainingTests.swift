import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite(.serialized) struct QuantizedTrainingTests {
    private func recipe(_ folder: TemporaryFolder, _ quantization: Quantization) async throws -> Recipe {
        var recipe = Recipe(
            model: try await ChatModels.shared.folder(),
            data: try folder.write(textRows(12, seed: 5), to: "train.jsonl"),
            settings: ["r": 4, "target_modules": "all-linear", "lora_dropout": 0.1])
        recipe.learningRate = 5e-3
        recipe.batchSize = 4
        recipe.steps = 6
        recipe.saveSteps = 3
        recipe.saveTotalLimit = nil
        recipe.dtype = .float32
        recipe.device = .cpu
        recipe.threads = 1
        recipe.quantization = quantization
        return recipe
    }

    private func tensors(_ folder: String) throws -> KeyedList<Tensor> {
        var result = KeyedList<Tensor>()
        for (name, tensor) in try SafetensorsFile(path: folder + "/adapter_model.safetensors").tensors {
            result[name] = try tensor.tensor()
        }
        return result
    }

    /// A run over quantised weights learns, resumes bit for bit, says in its recipe how weights were held, and leaves an
    /// adapter folder like any other.
    @Test(arguments: [Quantization.nf4, .int8]) func runsAndResumes(quantization: Quantization) async throws {
        try await withTemporaryFolder { folder in
            var recipe = try await recipe(folder, quantization)
            recipe.doubleQuant = false
            try Trainer.run(recipe, output: folder("whole"), showsProgress: false)
            let losses = try MetricsLog.read(path: RunLayout(folder("whole")).metrics).compactMap(\.loss)
            #expect(try #require(losses.last) < losses[0])
            let written = try Recipe(path: RunLayout(folder("whole")).recipe)
            #expect(written.quantization == quantization)
            #expect(quantization != .nf4 || !written.doubleQuant)

            try FileManager.default.copyItem(atPath: folder("whole"), toPath: folder("killed"))
            let layout = RunLayout(folder("killed"))
            try FileManager.default.removeItem(atPath: layout.adapter)
            try FileManager.default.removeItem(atPath: layout.checkpoint(step: 6))
            #expect(try Trainer.resume(folder("killed"), showsProgress: false).steps == 6)
            let (whole, resumed) = (try tensors(folder("whole/adapter")), try tensors(folder("killed/adapter")))
            #expect(whole.keys == resumed.keys)
            for (name, tensor) in whole { #expect(try tensor.isIdentical(to: #require(resumed[name])), "\(name)") }

            var other = try Recipe(path: layout.recipe)
            other.quantization = .none
            #expect(
                message { try Trainer.resume(folder("killed"), recipe: other, showsProgress: false) }.contains(
                    "quantization"))

            recipe.quantization = .none
            try Trainer.run(recipe, output: folder("plain"), showsProgress: false)
            func configuration(_ run: String) throws -> JSON {
                try JSON.read(path: folder(run) + "/adapter/adapter_config.json")
            }
            #expect(try configuration("whole") == configuration("plain"))
            #expect(try tensors(folder("plain/adapter")).keys == whole.keys)
            #expect(try !tensors(folder("plain/adapter")).entries[0].value.isIdentical(to: whole.entries[0].value))
        }
    }

    /// A model that was loaded quantised trains so, and the run's recipe says it.
    @Test func theRecipeFollowsTheModel() async throws {
        try await withTemporaryFolder { folder in
            let recipe = try await recipe(folder, .none)
            let model = try LanguageModel.load(
                recipe.model, dtype: .float32, device: .cpu, form: .nf4(quantisesScales: false))
            let adapter = try model.attach("lora", ["r": 2])
            try model.train(adapter, on: recipe.data, steps: 1, output: folder("run"), showsProgress: false)
            let written = try Recipe(path: RunLayout(folder("run")).recipe)
            #expect(written.quantization == .nf4 && !written.doubleQuant)
        }
    }

    @Test func keepNeedsBlocks() async throws {
        try await withTemporaryFolder { folder in
            let recipe = try await recipe(folder, .keep)
            let sentence = message { try Trainer.run(recipe, output: folder("run"), showsProgress: false) }
            #expect(sentence.contains("no quantised blocks to keep"))
        }
    }
}
