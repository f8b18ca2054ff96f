import Backbones
import Formats
import TestSupport
import Testing
import Torch

/// The kinds of tiny models in `models_oracle.py`.
let kinds = [
    "llama", "llama-mha", "llama-tied", "llama-head-dim", "llama-biases", "llama-relu", "llama3", "llama-linear",
    "llama-dynamic",
    "llama-yarn", "llama-yarn-full", "mistral", "mistral-full", "qwen2", "qwen2-sliding", "qwen2-tied", "qwen3",
    "qwen3-tied", "qwen3-sliding",
]

@Suite struct LogitsTests {
    @Test func everyKindIsTested() async throws {
        let known = try await Oracle.shared.call("models.kinds").array?.compactMap(\.string)
        #expect(known == kinds.sorted())
    }

    /// The lengths lie within and beyond sliding windows (5, 7) and pretraining lengths (16, 32, 64).
    @Test(arguments: kinds, [(1, 1), (3, 11), (1, 40), (2, 100)])
    func equalTransformers(kind: String, size: (rows: Int, time: Int)) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 11)
        var random = SeededGenerator(seed: UInt64(size.time))
        let ids = random.tokens(rows: size.rows, length: size.time, vocabulary: 97)
        let expected = try await referenceLogits(folder, ids)
        let found = try withoutGrad { try load(folder).logits(tensor(ids)) }
        #expect(try difference(found, expected) < 1e-5)
        // The logits are no constants that any model would have.
        #expect(try difference(expected, expected.zerosLike()) > 1)
    }

    /// Folders written before transformers 5 have `rope_theta`, `rope_scaling` and no `layer_types`.
    @Test(arguments: ["llama", "llama3", "llama-yarn", "llama-linear", "mistral", "qwen2-sliding", "qwen3-sliding"])
    func olderConfigurations(kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 12, options: ["legacy_config": true])
        var random = SeededGenerator(seed: 12)
        let ids = random.tokens(rows: 2, length: 70, vocabulary: 97)
        let expected = try await referenceLogits(folder, ids)
        #expect(try difference(withoutGrad { try load(folder).logits(tensor(ids)) }, expected) < 1e-5)
    }

    /// In bfloat16 the distance to the exact answer is that of transformers in bfloat16.
    @Test(arguments: ["llama", "llama-tied", "mistral", "qwen2", "qwen3"])
    func bfloat16(kind: String) async throws {
        let folder = try await TinyModels.shared.folder(kind, seed: 13, dtype: "bfloat16")
        var random = SeededGenerator(seed: 13)
        let ids = random.tokens(rows: 4, length: 50, vocabulary: 97)
        let exact = try await referenceLogits(folder, ids, dtype: "float64")
        let theirs = try await referenceLogits(folder, ids, dtype: "bfloat16")
        let backbone = try load(folder, dtype: .bfloat16)
        #expect(backbone.dtype == .bfloat16)
        let ours = try withoutGrad { try backbone.logits(tensor(ids)) }
        #expect(ours.dtype == .bfloat16)
        let unit = try rootMeanSquare(theirs, exact)
        #expect(unit > 1e-4)
        #expect(try rootMeanSquare(ours, exact) < 1.2 * unit)
        #expect(try difference(ours, exact) < 1.5 * difference(theirs, exact))
    }

    /// Stored dtype and dtype in memory are independent.
    @Test func storedBfloat16InFloat32() async throws {
        let folder = try await TinyModels.shared.folder("llama", seed: 14, dtype: "bfloat16")
        let ids = [[5, 17, 3, 88, 41]]
        let expected = try await referenceLogits(folder, ids, dtype: "float32")
        #expect(try difference(load(folder).logits(tensor(ids)), expected) < 1e-5)
    }

    @Test func shardsEqualOneFile() async throws {
        let one = try await TinyModels.shared.folder("llama", seed: 15)
        let several = try await TinyModels.shared.folder("llama", seed: 15, options: ["max_shard_size": "60KB"])
        #expect(try SafetensorsCheckpoint(path: one).files.count == 1)
        #expect(try SafetensorsCheckpoint(path: several).files.count > 2)
        let ids = try tensor([[1, 2, 3, 4, 5, 6, 7]])
        #expect(try load(one).logits(ids).isIdentical(to: load(several).logits(ids)))
    }

    @Test func parametersAreThoseOfTheCheckpoint() async throws {
        for kind in ["llama", "llama-biases", "qwen2-tied", "qwen3"] {
            let folder = try await TinyModels.shared.folder(kind, seed: 11)
            let backbone = try load(folder)
            let output = try TemporaryFolder.lasting("weights")("weights.safetensors")
            let shapes = try await Oracle.shared.call(
                "models.weights", ["folder": JSON(folder), "output": JSON(output)])
            #expect(Set(backbone.parameters.map(\.path)) == Set(shapes.object?.keys ?? []))
            let file = try SafetensorsFile(path: output)
            for parameter in backbone.parameters {
                #expect(try parameter.frozen.isIdentical(to: file.tensor(parameter.path).tensor()))
            }
            let stored = try SafetensorsCheckpoint(path: folder).tensors.values.reduce(0) { $0 + $1.elementCount }
            #expect(backbone.parameterCount == stored)
        }
    }
}
