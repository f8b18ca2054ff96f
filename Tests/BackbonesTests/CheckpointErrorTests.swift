import Backbones
import Formats
import Foundation
import TestSupport
import Testing
import Torch

/// Each broken model is refused with one sentence that names what is wrong.
@Suite struct CheckpointErrorTests {
    /// A copy of a tiny model's folder, whose configuration and tensors the test changes.
    private func broken(
        _ kind: String = "llama", config change: (inout KeyedList<JSON>) -> Void = { _ in },
        tensors: ((inout KeyedList<Tensor>) throws -> Void)? = nil
    ) async throws -> String {
        let source = try await TinyModels.shared.folder(kind, seed: 11)
        let folder = try TemporaryFolder.lasting("broken")
        var config = try JSON.read(path: source + "/config.json").object ?? [:]
        change(&config)
        try folder.write(JSON.object(config).compact, to: "config.json")
        var values = KeyedList<Tensor>()
        for (name, tensor) in try SafetensorsCheckpoint(path: source).tensors { values[name] = try tensor.tensor() }
        try tensors?(&values)
        try SafetensorsWriter.write(values, to: folder("model.safetensors"))
        return folder.path
    }

    private func sentence(of path: String) -> String { message { _ = try load(path) } ?? "no error" }

    private func expect(_ path: String, says words: String...) {
        let sentence = sentence(of: path)
        #expect(!sentence.contains("\n"))
        for word in words { #expect(sentence.contains(word), "\(sentence)") }
    }

    @Test func unchangedCopyLoads() async throws {
        #expect(sentence(of: try await broken()) == "no error")
    }

    @Test func missingTensor() async throws {
        let folder = try await broken { _ in
        } tensors: {
            $0["model.layers.1.mlp.up_proj.weight"] = nil
        }
        expect(folder, says: "model.safetensors", "\"model.layers.1.mlp.up_proj.weight\" is missing")
    }

    @Test func misspeltTensor() async throws {
        let folder = try await broken { _ in
        } tensors: {
            $0["model.norms.weight"] = $0["model.norm.weight"]
            $0["model.norm.weight"] = nil
        }
        expect(folder, says: "\"model.norm.weight\" is missing", "Did you mean \"model.norms.weight\"?")
    }

    @Test func wrongShape() async throws {
        let folder = try await broken { _ in
        } tensors: {
            $0["model.layers.2.self_attn.k_proj.weight"] = try Tensor.zeros([8, 48])
        }
        expect(folder, says: "model.layers.2.self_attn.k_proj.weight", "[8, 48]", "[16, 48]")
    }

    @Test func superfluousTensors() async throws {
        let folder = try await broken { _ in
        } tensors: {
            $0["model.layers.3.mlp.up_proj.weight"] = try Tensor.zeros([87, 48])
            $0["model.layers.0.self_attn.q_proj.bias"] = try Tensor.zeros([48])
        }
        expect(folder, says: "2 tensors do not belong", "\"model.layers.")
    }

    /// Some checkpoints hold rotary frequencies and the tied head besides; they say nothing new.
    @Test func harmlessTensors() async throws {
        let folder = try await broken("llama-tied") { _ in
        } tensors: {
            $0["model.layers.0.self_attn.rotary_emb.inv_freq"] = try Tensor.zeros([8])
            $0["lm_head.weight"] = $0["model.embed_tokens.weight"]
        }
        #expect(sentence(of: folder) == "no error")
    }

    @Test func architectures() async throws {
        expect(try await broken { $0["model_type"] = "lama" }, says: "\"lama\"", "Did you mean \"llama\"?", "qwen3")
        expect(try await broken { $0["model_type"] = "gpt2" }, says: "\"gpt2\" cannot be loaded", "mistral")
        expect(try await broken { $0["model_type"] = nil }, says: "model_type", "missing")
        expect(try await broken { $0["model_type"] = 7 }, says: "model_type")
    }

    static let badValues: [(key: String, value: JSON, words: String)] = [
        ("hidden_size", "48", "expected a positive whole number, found \"48\""),
        ("hidden_size", 0, "expected a positive whole number, found 0"),
        ("hidden_size", -48, "found -48"),
        ("hidden_size", 48.5, "found 48.5"),
        ("hidden_size", .null, "missing"),
        ("num_hidden_layers", 4_000_000_000_000, "found 4000000000000"),
        ("num_hidden_layers", 2_000_000_000, "\"model.layers.3.self_attn.q_proj.weight\" is missing"),
        ("vocab_size", 2_147_483_647, "[2147483647, 48]"),
        ("num_attention_heads", 7, "num_key_value_heads"),
        ("num_key_value_heads", 4, "do not divide"),
        ("num_key_value_heads", [2], "num_key_value_heads"),
        ("head_dim", 7, "head_dim"),
        ("rms_norm_eps", "small", "expected a number, found \"small\""),
        ("rms_norm_eps", -1, "rms_norm_eps"),
        ("tie_word_embeddings", "yes", "expected true or false"),
        ("hidden_act", "gelu", "\"gelu\" is not supported"),
        ("hidden_act", 3, "hidden_act"),
        ("attention_bias", true, "q_proj.bias"),
        ("mlp_bias", 1, "mlp_bias"),
        ("max_position_embeddings", -5, "max_position_embeddings"),
        ("quantization_config", ["bits": 4], "quantised"),
        ("rope_parameters", ["rope_type": "longrope", "rope_theta": 10000.0], "\"longrope\" is not supported"),
        ("rope_parameters", ["rope_type": "linear", "rope_theta": 10000.0], "factor"),
        (
            "rope_parameters", ["rope_type": "linear", "factor": -2, "rope_theta": 10000.0],
            "expected a positive number"
        ),
        ("rope_parameters", ["rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0], "low_freq_factor"),
        ("rope_parameters", ["rope_type": "default", "rope_theta": 0], "rope_theta"),
        ("rope_parameters", ["rope_type": "default", "rope_theta": "high"], "rope_theta"),
        ("rope_parameters", "none", "rope_parameters"),
        ("rope_parameters", ["rope_type": "yarn", "factor": 0, "rope_theta": 10000.0], "factor"),
    ]

    @Test(arguments: badValues.indices)
    func badConfigurationValues(index: Int) async throws {
        let (key, value, words) = Self.badValues[index]
        let folder = try await broken { $0[key] = value }
        expect(folder, says: words)
    }

    @Test func badWindows() async throws {
        expect(try await broken("mistral") { $0["sliding_window"] = 0 }, says: "sliding_window", "found 0")
        expect(try await broken("qwen2-sliding") { $0["layer_types"] = ["full_attention"] }, says: "layer_types", "4")
        expect(
            try await broken("qwen2-sliding") { $0["layer_types"] = ["full_attention", "local", "a", "b"] },
            says: "layer_types", "\"local\"")
    }

    @Test func otherFilesAreMissingOrBroken() async throws {
        expect("smollm2-135n", says: "no model \"smollm2-135n\"", "Did you mean \"smollm2-135m\"?")
        expect("/no/such/folder", says: "/no/such/folder", "alias")
        let empty = try TemporaryFolder.lasting("empty")
        expect(empty.path, says: "config.json")
        let plain = try await broken()
        try FileManager.default.removeItem(atPath: plain + "/model.safetensors")
        expect(plain, says: plain, "model.safetensors.index.json")
        try "not json".write(toFile: plain + "/config.json", atomically: true, encoding: .utf8)
        expect(plain, says: "config.json")
        try "[1]".write(toFile: plain + "/config.json", atomically: true, encoding: .utf8)
        expect(plain, says: "config.json", "model_type")
        let file = try empty.write("hello", to: "model.gguf")
        expect(file, says: file, "GGUF")
    }

    @Test func idsThatAreNoBatch() async throws {
        let backbone = try load(try await TinyModels.shared.folder("llama", seed: 11))
        #expect(message { _ = try backbone.logits(Tensor([1, 2, 3])) }?.contains("[batch, time]") == true)
        #expect(message { _ = try backbone.logits(tensor([[1, 97]])) } != nil)
        #expect(message { _ = try backbone.logits(tensor([[-1]])) } != nil)
    }
}
