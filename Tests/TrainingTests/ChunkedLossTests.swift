import Backbones
import Formats
import PEFT
import TestSupport
import Testing
import Torch
import Training

private let vocabulary = 49_152
private let chunkBytes = 8 << 20
private let tokens = 768

/// The chunked loss on a model with a large vocabulary.
@Suite struct ChunkedLossTests {
    private static func folder() async throws -> String {
        try await TinyModels.shared.folder(
            "llama", seed: 31,
            options: ["overrides": ["vocab_size": JSON(vocabulary), "num_hidden_layers": 1]])
    }

    /// A batch of one row, the loss of it by both ways, and the gradients of an adapter.
    private struct Problem {
        let backbone: any Backbone
        let adapter: Adapter
        let batch: Batch

        init(_ folder: String) throws {
            backbone = try Checkpoint(folder).backbone(dtype: .float32)
            adapter = try Adapter(
                AdapterConfiguration(method: "lora", settings: ["init_lora_weights": false]), on: backbone,
                seed: Seed(1))
            var generator = SeededGenerator(seed: 5)
            let ids = generator.tokens(rows: 1, length: tokens + 1, vocabulary: vocabulary)[0]
            batch = try Batch([Example(ids: ids, supervised: ids.map { _ in true }, line: 1)], padding: 0)
        }

        func chunked() throws -> Tensor { try SupervisedObjective(chunkBytes: chunkBytes).losses(batch, backbone) }

        /// All logits at once, as the textbook has it.
        func dense() throws -> Tensor {
            let logits = try backbone.logits(batch.ids).reshaped([-1, vocabulary])
            return try SupervisedObjective.crossEntropy(logits.gathered(batch.positions), batch.targets)
        }

        /// The gradients of the mean loss.
        func gradients(_ losses: Tensor) throws -> [Tensor] {
            try losses.mean().backward()
            let gradients = try adapter.trainables.map { try #require($0.tensor.grad) }
            for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }
            return gradients
        }

        /// How far the process's memory grows at most during a forward and a backward pass, in bytes.
        func growth(_ losses: () throws -> Tensor) throws -> Int {
            // What is loaded and compiled once does not count.
            let small = try SupervisedObjective(chunkBytes: 1 << 20).losses(batch, backbone)
            _ = try gradients(small)
            try Memory.resetPeak()
            let before = Memory.resident()
            _ = try gradients(losses())
            return Memory.peakResident() - before
        }
    }

    @Test("Chunked loss equals dense, memory asserted")
    func equalsDenseInBoundedMemory() async throws {
        let folder = try await Self.folder()
        let problem = try Problem(folder)
        let (chunked, dense) = (try problem.chunked(), try problem.dense())
        #expect(try largestDifference(chunked, dense) < 1e-5)
        for (one, other) in zip(try problem.gradients(chunked), try problem.gradients(dense)) {
            let size = try other.absolute().maximum().item(as: Double.self)
            #expect(size > 0)
            #expect(try largestDifference(one, other) < 1e-5 * max(1, size))
        }

        #if compiler(>=6.3)
        // In processes of their own, whose memory no other test moves.
        await #expect(processExitsWith: .success) { [folder = folder as String] in
            let problem = try Problem(folder)
            let growth = try problem.growth { try problem.chunked() }
            // A chunk's logits, what is made of them, and the states of all tokens.
            #expect(growth < 6 * chunkBytes, "\(growth) bytes")
        }
        // All logits have 151 MB: the bound is one that the dense form breaks.
        await #expect(processExitsWith: .success) { [folder = folder as String] in
            let problem = try Problem(folder)
            let growth = try problem.growth { try problem.dense() }
            #expect(growth > 2 * 4 * tokens * vocabulary, "\(growth) bytes")
        }
        #endif
    }
}
