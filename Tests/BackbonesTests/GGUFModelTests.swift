import Backbones
import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers
import Torch

@Suite struct GGUFModelTests {
    private func converted(_ kind: String, options: KeyedList<JSON> = [:]) async throws -> (
        folder: String, file: String
    ) {
        let folder = try await TinyModels.shared.folder(kind, seed: 51, options: options)
        let file = try TemporaryFolder.lasting("gguf")("model.gguf")
        _ = try await Oracle.shared.call("backbones.make_gguf", ["folder": JSON(folder), "path": JSON(file)])
        return (folder, file)
    }

    /// A GGUF file gives the logits of the folder that it was made from.
    @Test(
        arguments: [
            "llama", "llama-mha", "llama-tied", "llama-head-dim", "llama-linear", "llama-yarn", "mistral", "qwen2",
            "qwen2-tied", "qwen3", "qwen3-tied",
        ])
    func equalsTheFolder(kind: String) async throws {
        let (folder, file) = try await converted(kind)
        var random = SeededGenerator(seed: 51)
        let ids = random.tokens(rows: 2, length: 90, vocabulary: 97)
        let expected = try await referenceLogits(folder, ids)
        let checkpoint = try Checkpoint(file)
        #expect(checkpoint.location == .gguf(file))
        let backbone = try checkpoint.backbone(dtype: .float32)
        #expect(try difference(withoutGrad { try backbone.logits(tensor(ids)) }, expected) < 1e-5)
        let own = try load(folder)
        #expect(backbone.parameters.map(\.path) == own.parameters.map(\.path))
        #expect(backbone.parameterCount == own.parameterCount)
        for (mine, other) in zip(backbone.parameters, own.parameters) {
            #expect(try mine.frozen.isIdentical(to: other.frozen))
        }
    }

    /// Llama 3's scaling lies in a GGUF file as divisors of the frequencies.
    @Test func llama3Divisors() async throws {
        let overrides: JSON = [
            "head_dim": 32, "max_position_embeddings": 20000,
            "rope_parameters": [
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            ],
        ]
        let (folder, file) = try await converted("llama", options: ["overrides": overrides])
        let ids = [Array(1..<90)]
        let expected = try await referenceLogits(folder, ids)
        #expect(try difference(withoutGrad { try load(file).logits(tensor(ids)) }, expected) < 1e-5)
        // Divisors of other constants are refused.
        let (_, other) = try await converted("llama3")
        #expect(message { _ = try Checkpoint(other) }?.contains("rope_freqs.weight") == true)
    }

    @Test func truncatedFilesAreErrors() async throws {
        let (_, file) = try await converted("llama")
        let bytes = try Data(contentsOf: URL(fileURLWithPath: file))
        for count in [0, 3, 4, 20, 200, 1000, 2000, bytes.count / 2, bytes.count - 40] {
            let path = try TemporaryFolder.lasting("cut").write(bytes.prefix(count), to: "model.gguf")
            let sentence = message { _ = try load(path) }
            #expect(sentence?.contains("model.gguf") == true, "\(count) bytes: \(sentence ?? "no error")")
        }
    }
}

/// The model that `make setup` fetches.
@Suite struct SmolLM2Tests {
    /// 1e-4 in float32 against transformers' own reading of the same file.
    @Test func logitsEqualTransformers() async throws {
        let path = try RepositoryPaths.required(RepositoryPaths.smolLM2)
        let folder = try await Oracle.shared.call("models.gguf_folder", ["path": JSON(path)]).string ?? ""
        let tokenizer = try Tokenizer(gguf: GGUFFile(path: path))
        let ids = [tokenizer.encode("The capital of France is Paris, and the capital of Italy is Rome. In 1984, ")]
        #expect(ids[0].count > 15)
        let expected = try await referenceLogits(folder, ids)
        let backbone = try load(path)
        #expect(backbone.parameterCount == 134_515_008)
        let found = try withoutGrad { try backbone.logits(tensor(ids)) }
        #expect(try difference(found, expected) < 1e-4)

        // Blocks become bfloat16 in one step, and the logits differ by that rounding only.
        let small = try load(path, dtype: .bfloat16)
        for (narrow, wide) in zip(small.parameters, backbone.parameters) {
            #expect(try narrow.frozen.isIdentical(to: wide.frozen.to(dtype: .bfloat16)))
        }
        let half = try withoutGrad { try small.logits(tensor(ids)) }
        #expect(try rootMeanSquare(half, expected) < 0.2)

        let prompt = Array(ids[0][..<8])
        let reference = try await Oracle.shared.call(
            "models.generate_greedy", ["folder": JSON(folder), "ids": JSON(tokens: [prompt]), "n": 16])
        let generator = TextGenerator(backbone, tokenizer: tokenizer)
        let text = try generator.generate(prompt, settings: GenerationSettings(maxTokens: 16, stopsAtEndOfText: false))
        #expect(text.tokens == reference[0]?.array?.compactMap(\.int))
    }
}
