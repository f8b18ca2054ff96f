import Formats

extension LlamaConfiguration {
    /// Reads the configuration of a GGUF file into the form of a `config.json`.
    ///
    /// - Throws: `ModelError` and `FormatError` naming the key that is missing, wrong or not supported.
    public init(gguf file: GGUFFile) throws {
        let path = file.file.path
        guard let architecture = try file.value("general.architecture").string else {
            throw ModelError("\(path): general.architecture is not a string")
        }
        guard ["llama", "qwen2", "qwen3"].contains(architecture) else {
            throw ModelError(
                "\(path): the architecture \"\(architecture)\" cannot be loaded; those that can: llama, qwen2, qwen3")
        }
        let keys = GGUFKeys(file: file, prefix: architecture + ".")
        let heads = try keys.integer("attention.head_count")
        let hidden = try keys.integer("embedding_length")
        guard heads > 0 else { throw ModelError("\(path): \(architecture).attention.head_count is \(heads)") }
        var json: KeyedList<JSON> = [
            "architectures": .array([.string(keys.className)]),
            "model_type": .string(architecture),
            "vocab_size": JSON(try file.tensor("token_embd.weight").shape.first ?? 0),
            "hidden_size": JSON(hidden),
            "intermediate_size": JSON(try keys.integer("feed_forward_length")),
            "num_hidden_layers": JSON(try keys.integer("block_count")),
            "num_attention_heads": JSON(heads),
            "num_key_value_heads": JSON(keys.value("attention.head_count_kv")?.int ?? heads),
            "head_dim": JSON(
                keys.value("attention.key_length")?.int ?? keys.value("rope.dimension_count")?.int ?? hidden / heads),
            "hidden_act": "silu",
            "rms_norm_eps": JSON(try keys.number("attention.layer_norm_rms_epsilon")),
            "max_position_embeddings": JSON(try keys.integer("context_length")),
            "tie_word_embeddings": JSON(file.tensors["output.weight"] == nil),
            "rope_parameters": try keys.ropeParameters(),
        ]
        if architecture != "qwen2" {
            json["attention_bias"] = JSON(file.tensors["blk.0.attn_q.bias"] != nil)
        }
        if let window = keys.value("attention.sliding_window")?.int, window > 0 {
            json["model_type"] = architecture == "llama" ? "mistral" : json["model_type"]
            json["sliding_window"] = JSON(window)
            json["use_sliding_window"] = true
        }
        for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            if let id = file.metadata["tokenizer.ggml.\(name)_token_id"]?.int { json[key] = JSON(id) }
        }
        try self.init(.object(json), file: path)
    }
}

/// Typed access to the metadata of one architecture.
private struct GGUFKeys {
    let file: GGUFFile
    let prefix: String

    var className: String {
        switch prefix {
        case "qwen2.": "Qwen2ForCausalLM"
        case "qwen3.": "Qwen3ForCausalLM"
        default: value("attention.sliding_window") == nil ? "LlamaForCausalLM" : "MistralForCausalLM"
        }
    }

    func value(_ key: String) -> GGUFValue? { file.metadata[prefix + key] }

    func integer(_ key: String) throws -> Int {
        guard let value = try file.value(prefix + key).int else {
            throw ModelError("\(file.file.path): \(prefix)\(key) is not a whole number")
        }
        return value
    }

    func number(_ key: String) throws -> Double {
        guard let value = try file.value(prefix + key).double else {
            throw ModelError("\(file.file.path): \(prefix)\(key) is not a number")
        }
        // Stored as fp32; the shortest decimal that reads back as the same is what the model's author wrote.
        return Double("\(Float(value))") ?? value
    }

    func ropeParameters() throws -> JSON {
        var rope: KeyedList<JSON> = [
            "rope_theta": JSON(value("rope.freq_base") == nil ? 10_000 : try number("rope.freq_base"))
        ]
        switch value("rope.scaling.type")?.string ?? "none" {
        case "none": rope["rope_type"] = "default"
        case let type where type == "linear" || type == "yarn":
            rope["rope_type"] = .string(type)
            rope["factor"] = JSON(try number("rope.scaling.factor"))
            if let original = value("rope.scaling.original_context_length")?.int {
                rope["original_max_position_embeddings"] = JSON(original)
            }
        case let type:
            throw ModelError("\(file.file.path): \(prefix)rope.scaling.type \"\(type)\" is not supported")
        }
        if let divisors = file.tensors["rope_freqs.weight"] {
            let theta = rope["rope_theta"]?.double ?? 10_000
            for (key, value) in try llama3Scaling(divisors.tensor().values(as: Float.self).map(Double.init), theta) {
                rope[key] = value
            }
        }
        return .object(rope)
    }

    /// The scaling that a converter has worked into divisors of the frequencies: Llama 3's with its own constants.
    private func llama3Scaling(_ divisors: [Double], _ theta: Double) throws -> KeyedList<JSON> {
        let (factor, low, high, original) = (divisors.max() ?? 1, 1.0, 4.0, 8192)
        let rotary = RotaryEmbedding(
            dimension: 2 * divisors.count, theta: theta,
            scaling: .llama3(
                factor: factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalPositions: original))
        let plain = RotaryEmbedding(dimension: 2 * divisors.count, theta: theta)
        let expected = zip(plain.inverseFrequencies(length: 0), rotary.inverseFrequencies(length: 0)).map { $0 / $1 }
        guard zip(divisors, expected).allSatisfy({ abs($0 - $1) <= 1e-4 * $1 }) else {
            throw ModelError("\(file.file.path): the divisors in rope_freqs.weight are not those of Llama 3")
        }
        return [
            "rope_type": "llama3", "factor": JSON(factor), "low_freq_factor": JSON(low), "high_freq_factor": JSON(high),
            "original_max_position_embeddings": JSON(original),
        ]
    }
}
