import Backbones
import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct ObjectiveTests {
    private func examples(_ seed: UInt64, vocabulary: Int) -> [Example] {
        var generator = SeededGenerator(seed: seed)
        return (0..<4).map { line in
            let ids = generator.tokens(rows: 1, length: 5 + 6 * line, vocabulary: vocabulary)[0]
            let supervised = ids.indices.map { $0 == 4 || Bool.random(using: &generator) }
            return Example(ids: ids, supervised: supervised, line: line + 1)
        }
    }

    /// A backbone whose parameters are all trained as copies but the head, so that gradients reach every tensor.
    private func trained(_ folder: String, excludingHead: Bool) throws -> (any Backbone, KeyedList<Tensor>) {
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        var copies = KeyedList<Tensor>()
        for parameter in backbone.parameters where !(excludingHead && parameter === backbone.head.weight) {
            let copy = try parameter.frozen.cloned().requiringGrad()
            parameter.replacement = copy
            copies[parameter.path] = copy
        }
        return (backbone, copies)
    }

    /// In chunks of a few tokens with a frozen head, and in the plain form where the head is trained too.
    @Test(arguments: [true, false])
    func lossAndGradientsAreThoseOfTransformers(_ isHeadFrozen: Bool) async throws {
        let folder = try await TinyModels.shared.folder("qwen3")
        let (backbone, copies) = try trained(folder, excludingHead: isHeadFrozen)
        let vocabulary = backbone.configuration.vocabSize
        let rows = examples(3, vocabulary: vocabulary)
        let batch = try Batch(rows, padding: 7)
        // Seven tokens a chunk, so that the last one is not full.
        let objective = SupervisedObjective(chunkBytes: 7 * 4 * vocabulary)
        let losses = try objective.losses(batch, backbone)
        #expect(losses.shape == [batch.supervisedTokens])
        let loss = try losses.sum() / Double(batch.supervisedTokens)
        try loss.backward()
        try await withTemporaryFolder { temporary in
            let expected = try await Oracle.shared.call(
                "training.objective",
                ["folder": JSON(folder), "rows": JSON(rows: rows), "output": JSON(temporary("g.safetensors"))])
            #expect(abs(try loss.item(as: Double.self) - (expected.double ?? 0)) < 1e-5)
            let gradients = try SafetensorsFile(path: temporary("g.safetensors"))
            for (path, copy) in copies {
                let difference = try largestDifference(#require(copy.grad), gradients.tensor(path).tensor())
                #expect(difference < 1e-5, "\(path): \(difference)")
            }
        }
    }

    @Test func chunksDoNotChangeLossesOrGradients() async throws {
        let folder = try await TinyModels.shared.folder("llama-tied")
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let vocabulary = backbone.configuration.vocabSize
        let batch = try Batch(examples(8, vocabulary: vocabulary), padding: 0)
        let adapter = try Adapter(
            AdapterConfiguration(method: "lora", settings: ["init_lora_weights": false]), on: backbone, seed: Seed(1))
        // Weights for each token's loss reach the gradient of that token alone.
        var generator = SeededGenerator(seed: 4)
        let weights = try Tensor(generator.normals(batch.supervisedTokens))
        var results: [(losses: Tensor, gradients: [Tensor])] = []
        for chunk in [1, 3, 1 << 20] {
            let losses = try SupervisedObjective(chunkBytes: chunk * 4 * vocabulary).losses(batch, backbone)
            try (losses * weights).sum().backward()
            results.append((try losses.detached(), try adapter.trainables.map { try #require($0.tensor.grad) }))
            for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }
        }
        let states = try backbone.hiddenStates(batch.ids, Context()).reshaped([-1, backbone.configuration.hiddenSize])
        let logits = try backbone.head(states.gathered(batch.positions), Context())
        let plain = try SupervisedObjective.crossEntropy(logits, batch.targets)
        try (plain * weights).sum().backward()
        results.append((try plain.detached(), try adapter.trainables.map { try #require($0.tensor.grad) }))
        for result in results.dropLast() {
            #expect(try largestDifference(result.losses, plain) < 1e-5)
            for (gradient, expected) in zip(result.gradients, results[results.count - 1].gradients) {
                #expect(try largestDifference(gradient, expected) < 1e-5)
            }
        }
        adapter.detach()
    }

    @Test func anAdaptedHeadIsUsed() async throws {
        let folder = try await TinyModels.shared.folder("llama")
        let backbone = try Checkpoint(folder).backbone(dtype: .float32)
        let batch = try Batch(examples(9, vocabulary: backbone.configuration.vocabSize), padding: 0)
        let objective = SupervisedObjective()
        let before = try objective.losses(batch, backbone)
        let settings: KeyedList<JSON> = ["init_lora_weights": false, "target_modules": ["lm_head"]]
        let adapter = try Adapter(
            AdapterConfiguration(method: "lora", settings: settings), on: backbone, seed: Seed(1))
        let after = try objective.losses(batch, backbone)
        #expect(try largestDifference(before, after) > 1e-3)
        try after.sum().backward()
        for trainable in adapter.trainables {
            #expect(try #require(trainable.tensor.grad).absolute().maximum().item(as: Double.self) > 0)
        }
        var context = Context()
        context.usesAdapters = false
        #expect(try largestDifference(objective.losses(batch, backbone, context), before) < 1e-6)
        adapter.detach()
    }
}
