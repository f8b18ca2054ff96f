import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch
import Training

/// What ID3 and full fine-tuning must show together with the optimiser.
@Suite struct UnmaskingTests {
    private static let ids = [[5, 17, 3, 88, 41, 9, 60], [1, 70, 70, 2, 33, 95, 14]]

    /// A trained adapter, with the losses before each step.
    private func train(
        _ name: String, _ settings: KeyedList<JSON>, steps: Int, rate: Double = 1e-2, decay: Double = 0.1
    ) async throws -> (adapter: Adapter, losses: [Double]) {
        let backbone = try Checkpoint(await TinyModels.shared.folder("llama-tied")).backbone(dtype: .float32)
        let configuration = try AdapterConfiguration(method: name, settings: settings)
        let adapter = try Adapter(configuration, on: backbone, seed: Seed(1))
        var options = AdamW.Settings()
        options.weightDecay = decay
        let optimiser = try AdamW(adapter.trainables, settings: options)
        let tokens = try Tensor(Self.ids.flatMap { $0 }, shape: [2, 7])
        let targets = try tokens.narrowed(1, start: 1, length: 6).reshaped([-1])
        try adapter.trainingBegins(totalSteps: steps)
        var losses: [Double] = []
        for step in 0..<steps {
            try adapter.stepBegins(step)
            let logits = try backbone.logits(tokens).narrowed(1, start: 0, length: 6)
            let loss = try callTensor("aten::cross_entropy_loss", logits.reshaped([-1, logits.size(2)]), targets)
            losses.append(try loss.item())
            try loss.backward()
            try adapter.gradientsAreReady(step)
            try optimiser.step(learningRate: rate)
            try adapter.stepEnded(step)
            for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }
        }
        return (adapter, losses)
    }

    @Test(arguments: ["increment", "static", "pafi", "random"])
    func whatStaysMaskedStaysAsItWas(rule: String) async throws {
        let (adapter, _) = try await train("id3", ["budget": 101, "selection": JSON(rule)], steps: 4)
        var changed = 0
        for (parameter, tensor) in adapter.copies where parameter.path != "lm_head.weight" {
            let trainable = try #require(adapter.trainables.first { $0.tensor === tensor })
            let mask = try #require(adapter.buffers[trainable.name + ".unmasked"])
            let moved = try callTensor("aten::ne.Tensor", tensor.detached(), parameter.values(dtype: .float32))
            let escaped = try callTensor("aten::logical_and", moved, callTensor("aten::logical_not", mask))
            #expect(try escaped.sum().item(as: Int.self) == 0, "\(parameter.path)")
            changed += try moved.sum().item(as: Int.self)
        }
        #expect(changed > 90 && changed <= 101)
    }

    @Test func aBudgetOfEveryScalarIsFullFineTuning() async throws {
        let (full, losses) = try await train("full", [:], steps: 3)
        let (all, same) = try await train(
            "id3", ["budget": JSON(full.parameterCount), "max_steps": 1], steps: 3)
        #expect(losses == same)
        for (a, b) in zip(full.trainables, all.trainables) {
            #expect(a.name == b.name)
            #expect(try a.tensor.isIdentical(to: b.tensor), "\(a.name)")
        }
    }

    @Test func unmaskingLearnsMoreThanTheSmallestWeights() async throws {
        func last(_ rule: String) async throws -> Double {
            let settings: KeyedList<JSON> = ["budget": 200, "selection": JSON(rule)]
            return try #require(try await train("id3", settings, steps: 30, decay: 0).losses.last)
        }
        let (increment, smallest) = (try await last("increment"), try await last("pafi"))
        #expect(increment < smallest - 0.1, "\(increment) \(smallest)")
    }
}
