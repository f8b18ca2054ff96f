import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct NonFiniteTests {
    /// A copy of the tiny chat model with one tensor changed.
    private func damaged(
        _ folder: TemporaryFolder, _ name: String, _ change: (Tensor) throws -> Void
    ) async throws -> String {
        let source = try await ChatModels.shared.folder()
        let copy = folder("model-" + name)
        try FileManager.default.copyItem(atPath: source, toPath: copy)
        var tensors = KeyedList<Tensor>()
        for (key, tensor) in try SafetensorsFile(path: source + "/model.safetensors").tensors {
            tensors[key] = try tensor.tensor().cloned()
        }
        try withoutGrad { try change(#require(tensors[name])) }
        try SafetensorsWriter.write(tensors, to: copy + "/model.safetensors", metadata: ["format": "pt"])
        return copy
    }

    private func recipe(_ folder: TemporaryFolder, model: String, rows: String) throws -> Recipe {
        var recipe = Recipe(
            model: model, data: try folder.write(rows, to: "rows.jsonl"),
            settings: ["r": 4, "target_modules": "all-linear", "init_lora_weights": false])
        recipe.batchSize = 2
        recipe.gradientAccumulationSteps = 2
        recipe.dtype = .float32
        recipe.device = .cpu
        return recipe
    }

    private func failure(_ body: () throws -> Void) throws -> TrainingFailure {
        do {
            try body()
        } catch let failure as TrainingFailure {
            return failure
        }
        throw TrainingError("nothing failed")
    }

    /// One row among many has the one token whose pretrained embedding is no number; the run goes on until it comes.
    @Test("Non-finite guard names layer and row", arguments: [false, true])
    func namesLayerAndRow(isPacked: Bool) async throws {
        try await withTemporaryFolder { folder in
            let rows = textRows(17, seed: 5) + "{\"text\": \"the Z fox\"}\n" + textRows(4, seed: 6)
            let plain = try LanguageModel.load(try await ChatModels.shared.folder(), dtype: .float32, device: .cpu)
            let token = try #require(plain.tokenizer.encode("Z").first)
            let model = try await damaged(folder, "model.embed_tokens.weight") {
                try $0.selected(0, token).selected(0, 5).fill(.nan)
            }
            var recipe = try recipe(folder, model: model, rows: rows)
            recipe.packing = isPacked
            recipe.saveTotalLimit = 1
            // A seed with which the row comes in the middle of the run.
            let step = try #require(
                (1...50).lazy.compactMap { seed -> Int? in
                    var order = DataOrder(seed: Seed(UInt64(seed)), count: 22, rowsPerStep: 4)
                    recipe.seed = seed
                    return (2..<4).first { order.rows(step: $0).contains(17) }
                }.first)
            recipe.saveSteps = 1

            let run = folder("run")
            let failure = try failure { try Trainer.run(recipe, output: run, showsProgress: false) }
            #expect(failure.step == step + 1)
            #expect(failure.module == "model.embed_tokens")
            #expect(failure.tensor == "model.embed_tokens.weight")
            #expect(failure.lines == [18])
            for part in ["step \(step + 1): the loss is nan", "rows.jsonl line 18;", "get it again"] {
                #expect(failure.description.contains(part), "\(failure)")
            }
            // The state before the step is there, and what repeats the failure.
            let layout = RunLayout(run)
            #expect(try layout.checkpoints().last?.step == step)
            #expect(!FileManager.default.fileExists(atPath: layout.adapter))
            let json = try JSON.read(path: layout.failure)
            #expect(json["step"]?.int == step + 1 && json["seed"]?.int == recipe.seed)
            #expect(json["module"] == "model.embed_tokens" && json["tensor"] == "model.embed_tokens.weight")
            #expect(json["rows"]?.array?.count == 1)
            #expect(json["rows"]?[0]?["ids"]?.array?.compactMap(\.int).contains(token) == true)
            #expect(json["checkpoint"]?.string == layout.checkpoint(step: step))
            #expect(json["recipe"]?["packing"]?.bool == isPacked)
            let again = try self.failure { try Trainer.resume(run, showsProgress: false) }
            #expect(again.description == failure.description)
        }
    }

    /// A weight, an adapter's tensor, numbers beyond a dtype: each is told apart and named.
    @Test func namesTheCause() async throws {
        try await withTemporaryFolder { folder in
            let rows = textRows(6, seed: 5)
            let weight = "model.layers.1.mlp.up_proj.weight"
            let model = try await damaged(folder, weight) { try $0.selected(0, 3).selected(0, 4).fill(.infinity) }
            var broken = try recipe(folder, model: model, rows: rows)
            let base = try failure { try Trainer.run(broken, output: folder("base"), showsProgress: false) }
            #expect(base.module == "model.layers.1.mlp.up_proj" && base.tensor == weight && base.step == 1)
            #expect(base.lines.count == 2 && base.description.contains("damaged"), "\(base)")

            // Finite weights whose products are not.
            broken.model = try await damaged(folder, "model.layers.0.mlp.gate_proj.weight") {
                // In two steps, since the factor alone is beyond fp32.
                try $0.multiply(by: 1 / $0.absolute().maximum().item(as: Double.self))
                try $0.multiply(by: 3e38)
            }
            broken.dtype = .bfloat16
            let overflow = try failure { try Trainer.run(broken, output: folder("overflow"), showsProgress: false) }
            #expect(overflow.module?.hasPrefix("model.layers.0.mlp.") == true && overflow.tensor == nil, "\(overflow)")
            #expect(overflow.description.contains("outgrow bfloat16"), "\(overflow)")
            #expect(overflow.description.contains("use dtype float32"))

            let whole = try LanguageModel.load(try await ChatModels.shared.folder(), dtype: .float32, device: .cpu)
            let adapter = try whole.attach("lora", ["target_modules": "all-linear"])
            let tensor = try #require(
                adapter.trainables.first { $0.name.contains("layers.1.self_attn.v_proj.lora_B") })
            try withoutGrad { try tensor.tensor.selected(0, 2).selected(0, 1).fill(.infinity) }
            let trained = try failure {
                try whole.train(adapter, on: broken.data, output: folder("trained"), showsProgress: false)
            }
            #expect(trained.module == "model.layers.1.self_attn.v_proj" && trained.tensor == tensor.name)
            #expect(trained.description.contains("begin from an adapter that is whole"), "\(trained)")
        }
    }

    /// The loss is finite, the root's slope at zero is not.
    @Test func aGradientThatIsNoNumberIsNamed() async throws {
        try await withTemporaryFolder { folder in
            let model = try LanguageModel.load(try await ChatModels.shared.folder(), dtype: .float32, device: .cpu)
            // A token whose embedding is zero makes the first layer's input zero, and only in its row.
            let token = try #require(model.tokenizer.encode("Z").first)
            let embedding = try #require(model.backbone.parameters.first)
            let changed = try embedding.frozen.cloned()
            try changed.selected(0, token).fill(0)
            embedding.replacement = changed
            let data = try folder.write(
                textRows(3, seed: 4) + "{\"text\": \"fox Z\"}\n" + textRows(4, seed: 7), to: "rows.jsonl")
            var selection = Selection()
            selection.targetModules = .names(["q_proj"])
            selection.layersToTransform = Selection.Layers(json: [0])
            let adapter = try Adapter(
                AdapterConfiguration(Rooted(), selection: selection), on: model.backbone, seed: Seed(1))
            let failure = try failure {
                try model.train(adapter, on: data, steps: 3, output: folder("run"), showsProgress: false) {
                    $0.batchSize = 8
                }
            }
            #expect(failure.step == 1 && failure.lines == [4], "\(failure)")
            #expect(failure.module == "model.layers.0.self_attn.q_proj")
            #expect(failure.tensor == "base_model.model.model.layers.0.self_attn.q_proj.rooted")
            #expect(failure.description.contains("the gradient of base_model.model"), "\(failure)")
            #expect(try JSON.read(path: RunLayout(folder("run")).failure)["checkpoint"]?.isNull == true)
        }
    }

    @Test func tensorsThatDoNotLearnAreNamed() async throws {
        let model = try LanguageModel.load(try await ChatModels.shared.folder(), dtype: .float32, device: .cpu)
        let adapter = try model.attach("lora")
        var check = GradientCheck()
        #expect(message { _ = try check.check(adapter, step: 1, learningRate: 1) }.contains("get no gradient"))
        /// Gradients of a step: none but zeros in the tensors that `isSilent` names.
        func gradients(_ isSilent: (String) -> Bool) throws {
            for trainable in adapter.trainables {
                try trainable.tensor.setGrad(Tensor.full(trainable.tensor.shape, isSilent(trainable.name) ? 0 : 1))
            }
        }
        func warnings(_ steps: [(Double, (String) -> Bool)]) throws -> [String] {
            var check = GradientCheck()
            return try steps.enumerated().compactMap { index, step in
                try gradients(step.1)
                return try check.check(adapter, step: index + 1, learningRate: step.0)
            }
        }
        let isA = { (name: String) in name.contains("lora_A") }
        let never = { (_: String) in false }
        // Nothing moves A before B has moved: no warning when it does, one when it never does.
        #expect(try warnings([(0, isA), (0, isA), (1, isA), (1, never), (1, never), (1, never)]).isEmpty)
        let found = try warnings(Array(repeating: (1, isA), count: 9))
        #expect(found.count == 1)
        #expect(found.first?.contains("\(adapter.trainables.count / 2) of \(adapter.trainables.count)") == true)
        #expect(found.first?.contains("lora_A") == true)
        adapter.detach()

        try await withTemporaryFolder { folder in
            #expect(try adapter.zeroWeightNote() == nil)
            let name = "model.layers.1.self_attn.v_proj.weight"
            let zero = try LanguageModel.load(
                try await damaged(folder, name) { try $0.fill(0) }, dtype: .float32, device: .cpu)
            let note = try #require(try zero.attach("lora").zeroWeightNote())
            #expect(note.contains("1 of the") && note.contains(name), "\(note)")
        }
    }
}

/// Adds `sqrt(|x t|)` to each output.
private struct Rooted: PEFT.Method {
    static let peftType = "ROOTED"
    static let fields: [Field<Rooted>] = []

    func attach(to points: AttachPoints, seed: Seed) throws -> PEFT.Attachment {
        var attachment = PEFT.Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let tensor = try Trainable(adapterKey(layer.path, "rooted"), Tensor.full([layer.inFeatures, 1], 0.1))
            attachment.trainables.append(tensor)
            attachment.updates.append((layer, Update(tensor: tensor.tensor)))
        }
        return attachment
    }

    struct Update: AdditiveUpdate {
        let tensor: Tensor
        let dropout = 0.0
        func callAsFunction(_ input: Tensor) throws -> Tensor {
            try input.matmul(tensor).absolute().squareRoot()
        }
        func dense() throws -> Tensor { try tensor.transposed() }
    }
}
