import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Torch
import Training

@Suite struct OptimiserTests {
    private static let shapes: KeyedList<[Int]> = ["a": [3, 5], "b": [7], "c": [2, 3, 4], "d": [1]]

    /// Parameters `p.<name>` and gradients `g.<step>.<name>` of a random problem.
    private func problem(steps: Int, seed: UInt64) throws -> KeyedList<Tensor> {
        var generator = SeededGenerator(seed: seed)
        var tensors = KeyedList<Tensor>()
        for (name, shape) in Self.shapes {
            let count = shape.reduce(1, *)
            tensors["p." + name] = try Tensor(generator.normals(count), shape: shape)
            for step in 0..<steps {
                tensors["g.\(step).\(name)"] = try Tensor(generator.normals(count), shape: shape) * 0.3
            }
        }
        return tensors
    }

    private func trainables(_ tensors: KeyedList<Tensor>) throws -> [Trainable] {
        try Self.shapes.keys.map { try Trainable($0, #require(tensors["p." + $0])) }
    }

    @Test(arguments: [(0.0, 0.0), (0.1, 0.0), (0.01, 0.5)])
    func stepsAreThoseOfTorch(_ decay: Double, _ clip: Double) async throws {
        let steps = 12
        let tensors = try problem(steps: steps, seed: 5)
        let trained = try trainables(tensors)
        var settings = AdamW.Settings()
        (settings.beta1, settings.beta2, settings.epsilon, settings.weightDecay) = (0.85, 0.97, 1e-7, decay)
        let optimiser = try AdamW(trained, settings: settings)
        var norms: [Double] = []
        for step in 0..<steps {
            for trainable in trained {
                try trainable.tensor.setGrad(#require(tensors["g.\(step).\(trainable.name)"]).cloned())
            }
            if clip > 0 { norms.append(try clipNorm(of: trained.compactMap(\.tensor.grad), to: clip)) }
            try optimiser.step(learningRate: 0.02)
        }
        try await withTemporaryFolder { folder in
            try SafetensorsWriter.write(tensors, to: folder("in.safetensors"))
            for fused in [true, false] {
                let expectedNorms = try await Oracle.shared.call(
                    "training.adamw",
                    [
                        "path": JSON(folder("in.safetensors")), "output": JSON(folder("out.safetensors")),
                        "steps": JSON(steps), "lr": 0.02, "betas": [0.85, 0.97], "eps": 1e-7,
                        "weight_decay": JSON(decay), "clip": JSON(clip), "fused": JSON(fused),
                    ])
                let expected = try SafetensorsFile(path: folder("out.safetensors"))
                for trainable in trained {
                    let difference = try largestDifference(
                        trainable.tensor, expected.tensor(trainable.name).tensor())
                    #expect(difference < 1e-6, "\(trainable.name): \(difference)")
                }
                for (norm, expected) in zip(norms, expectedNorms.array ?? []) {
                    #expect(norm == expected.double)
                }
                #expect(expectedNorms.array?.count == norms.count)
            }
        }
    }

    @Test func factorsAndMasksOfDecayCount() throws {
        let tensors = try problem(steps: 1, seed: 6)
        var trained = try trainables(tensors)
        trained[0].learningRateFactor = 4
        trained[1].decay = .none
        let mask = try Tensor([Float](repeating: 0, count: 12) + [Float](repeating: 1, count: 12), shape: [2, 3, 4])
        trained[2].decay = .only(mask)
        var settings = AdamW.Settings()
        settings.weightDecay = 0.5
        let optimiser = try AdamW(trained, settings: settings)
        // A gradient of zero moves nothing: what is left is decay.
        for trainable in trained { try trainable.tensor.setGrad(trainable.tensor.detached().zerosLike()) }
        try optimiser.step(learningRate: 0.1)
        func before(_ name: String) throws -> Tensor { try #require(tensors["p." + name]) }
        #expect(try largestDifference(trained[0].tensor, before("a") * (1 - 0.1 * 4 * 0.5)) < 1e-6)
        #expect(try trained[1].tensor.detached().isIdentical(to: before("b")))
        #expect(try largestDifference(trained[2].tensor, before("c") * ((mask * -0.05) + 1)) < 1e-6)
        #expect(try largestDifference(trained[3].tensor, before("d") * 0.95) < 1e-6)
        // A trainable without a gradient stays.
        try trained[3].tensor.setGrad(nil)
        let kept = try trained[3].tensor.detached().cloned()
        try optimiser.step(learningRate: 0.1)
        #expect(try trained[3].tensor.detached().isIdentical(to: kept))
        // The first step of Adam has the length of the learning rate, times the factor.
        let fresh = try trainables(tensors)
        for trainable in fresh { try trainable.tensor.setGrad(trainable.tensor.detached() * 0 + 1) }
        try AdamW([fresh[0]]).step(learningRate: 0.1)
        #expect(try largestDifference(fresh[0].tensor, before("a") - 0.1) < 1e-6)
    }
}
