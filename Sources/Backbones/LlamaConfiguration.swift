import Formats
import Torch

/// The facts of a Llama-family model, as Hugging Face's `config.json` has them.
public struct LlamaConfiguration: Sendable {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    public let modelType: String
    /// The tokens that the model knows.
    public let vocabSize: Int
    /// The width of the stream between blocks.
    public let hiddenSize: Int
    /// The width inside an MLP.
    public let intermediateSize: Int
    /// The blocks.
    public let numHiddenLayers: Int
    /// The heads of queries.
    public let numAttentionHeads: Int
    /// The heads of keys and values, a divisor of the heads of queries.
    public let numKeyValueHeads: Int
    /// The features of one head.
    public let headDim: Int
    /// What norms add to the mean square.
    public let rmsNormEps: Double
    /// The positions that the model is made for.
    public let maxPositionEmbeddings: Int
    /// Whether the output head is the embedding.
    public let tieWordEmbeddings: Bool
    /// Whether q, k and v have biases.
    public let attentionBias: Bool
    /// Whether the output projection of attention has one.
    public let attentionOutputBias: Bool
    /// Whether the layers of the MLPs have biases.
    public let mlpBias: Bool
    /// What the gates of the MLPs pass through.
    public let activation: Activation
    /// The positions.
    public let rotary: RotaryEmbedding
    /// The whole `config.json`, for writing it again.
    public let json: JSON
    private let windows: SlidingWindows

    /// What the gate of an MLP passes through, by the names of `hidden_act`.
    public enum Activation: String, Sendable {
        case silu, relu

        /// The function, elementwise.
        ///
        /// - Throws: `TorchError` when memory is short.
        public func callAsFunction(_ gate: Tensor) throws -> Tensor {
            switch self {
            case .silu: try Torch.silu(gate)
            case .relu: try Torch.relu(gate)
            }
        }
    }

    /// The architectures that can be loaded, by `model_type`.
    public static let modelTypes = ["llama", "mistral", "qwen2", "qwen3"]

    /// Whether queries and keys are normalised head by head.
    public var hasQueryKeyNorm: Bool { modelType == "qwen3" }

    /// How many tokens, itself included, a token of a layer sees; nil: all.
    public func slidingWindow(layer: Int) -> Int? { windows[layer] }

    /// Reads a `config.json`.
    ///
    /// - Parameters:
    ///   - json: The file's content.
    ///   - file: Its path, for errors.
    /// - Throws: `ModelError` naming the key that is missing, wrong or not supported.
    public init(_ json: JSON, file: String) throws {
        let reader = ConfigReader(json: json, file: file)
        self.json = json
        modelType = try reader.modelType()
        vocabSize = try reader.positive("vocab_size")
        hiddenSize = try reader.positive("hidden_size")
        intermediateSize = try reader.positive("intermediate_size")
        numHiddenLayers = try reader.positive("num_hidden_layers")
        numAttentionHeads = try reader.positive("num_attention_heads")
        let keyValueDefault = modelType == "mistral" ? 8 : numAttentionHeads
        numKeyValueHeads = try reader.positive("num_key_value_heads", default: keyValueDefault)
        headDim = try reader.positive(
            "head_dim", default: modelType == "qwen3" ? 128 : hiddenSize / numAttentionHeads)
        rmsNormEps = try reader.number("rms_norm_eps", default: 1e-6)
        guard rmsNormEps >= 0, rmsNormEps < 1 else {
            throw reader.error("rms_norm_eps", "expected a small positive number, found \(rmsNormEps)")
        }
        maxPositionEmbeddings = try reader.positive("max_position_embeddings", default: 2048)
        tieWordEmbeddings = try reader.bool("tie_word_embeddings", default: false)
        let bias = try reader.bool("attention_bias", default: false)
        attentionBias = modelType == "qwen2" || bias
        attentionOutputBias = modelType != "qwen2" && bias
        mlpBias = try reader.bool("mlp_bias", default: false)
        activation = try reader.activation()
        rotary = try reader.rotary(dimension: headDim, maxPositions: maxPositionEmbeddings)
        windows = try reader.windows(modelType: modelType, layers: numHiddenLayers)
        try reader.refuseWhatChangesTheMathematics()
        guard numAttentionHeads % numKeyValueHeads == 0 else {
            throw reader.error(
                "num_key_value_heads", "\(numKeyValueHeads) heads do not divide the \(numAttentionHeads) query heads")
        }
        guard headDim % 2 == 0 else { throw reader.error("head_dim", "\(headDim) is odd; rotation needs pairs") }
    }
}

/// Which layers see how far back.
private enum SlidingWindows: Sendable {
    case none
    /// A window in this layer and those after it.
    case from(layer: Int, Int)
    /// One entry a layer.
    case listed([Int?])

    subscript(layer: Int) -> Int? {
        switch self {
        case .none: nil
        case .from(let first, let window): layer >= first ? window : nil
        case .listed(let windows): windows.indices.contains(layer) ? windows[layer] : nil
        }
    }
}

/// Typed access to the keys of a `config.json`.
private struct ConfigReader {
    let json: JSON
    let file: String

    func error(_ key: String, _ message: String) -> ModelError { ModelError("\(file), key \"\(key)\": \(message)") }

    private func present(_ key: String) -> JSON? {
        guard let value = json[key], !value.isNull else { return nil }
        return value
    }

    func positive(_ key: String, default fallback: Int? = nil) throws -> Int {
        guard let value = present(key) else {
            if let fallback, fallback > 0 { return fallback }
            throw error(key, "the key is missing")
        }
        // Sizes beyond 2^31 are no sizes of a model, and products of two stay in range.
        guard let number = value.int, number > 0, number < 1 << 31 else {
            throw error(key, "expected a positive whole number, found \(value.compact)")
        }
        return number
    }

    func number(_ key: String, default fallback: Double) throws -> Double {
        guard let value = present(key) else { return fallback }
        guard let number = value.double else { throw error(key, "expected a number, found \(value.compact)") }
        return number
    }

    func bool(_ key: String, default fallback: Bool) throws -> Bool {
        guard let value = present(key) else { return fallback }
        guard let flag = value.bool else { throw error(key, "expected true or false, found \(value.compact)") }
        return flag
    }

    func modelType() throws -> String {
        guard let value = present("model_type") else { throw error("model_type", "the key is missing") }
        guard let type = value.string else {
            throw error("model_type", "expected the name of an architecture, found \(value.compact)")
        }
        guard LlamaConfiguration.modelTypes.contains(type) else {
            let known = LlamaConfiguration.modelTypes
            throw error(
                "model_type",
                "the architecture \"\(type)\" cannot be loaded; those that can: \(known.joined(separator: ", "))"
                    + "." + suggestion(for: type, in: known))
        }
        return type
    }

    func activation() throws -> LlamaConfiguration.Activation {
        guard let value = present("hidden_act") else { return .silu }
        guard let activation = value.string.flatMap(LlamaConfiguration.Activation.init) else {
            throw error(
                "hidden_act", "the activation \(value.compact) is not supported; expected \"silu\" or \"relu\"")
        }
        return activation
    }

    func refuseWhatChangesTheMathematics() throws {
        if present("quantization_config") != nil {
            throw error(
                "quantization_config", "quantised checkpoints cannot be loaded; use the original or a GGUF file")
        }
    }

    func windows(modelType: String, layers: Int) throws -> SlidingWindows {
        if modelType == "mistral" {
            guard json["sliding_window"]?.isNull != true else { return .none }
            return .from(layer: 0, try positive("sliding_window", default: 4096))
        }
        guard modelType.hasPrefix("qwen"), try bool("use_sliding_window", default: false),
            json["sliding_window"]?.isNull != true
        else { return .none }
        let window = try positive("sliding_window", default: 4096)
        guard let types = present("layer_types") else {
            guard let first = (present("max_window_layers") ?? 28).int, first >= 0 else {
                throw error(
                    "max_window_layers",
                    "expected a whole number, found \((json["max_window_layers"] ?? .null).compact)")
            }
            return .from(layer: first, window)
        }
        guard let types = types.array, types.count == layers else {
            throw error("layer_types", "expected a list of \(layers) names, found \(types.compact)")
        }
        return .listed(
            try types.map { type in
                switch type.string {
                case "sliding_attention": return window
                case "full_attention": return nil
                default:
                    throw error(
                        "layer_types", "\(type.compact) is not supported; expected full_attention or sliding_attention")
                }
            })
    }

    /// Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (earlier).
    func rotary(dimension: Int, maxPositions: Int) throws -> RotaryEmbedding {
        let key = present("rope_parameters") == nil ? "rope_scaling" : "rope_parameters"
        let parameters = present(key) ?? .object([:])
        guard parameters.object != nil else {
            throw error(key, "expected an object, found \(parameters.compact)")
        }
        let rope = ConfigReader(json: parameters, file: file)
        let thetaDefault = try number("rope_theta", default: 10_000)
        let theta = try rope.number("rope_theta", default: thetaDefault)
        if let partial = parameters["partial_rotary_factor"]?.double, partial != 1 {
            throw error("partial_rotary_factor", "\(partial) is not supported; expected 1")
        }
        let type = (parameters["rope_type"] ?? parameters["type"])?.string ?? "default"
        let scaling: RotaryEmbedding.Scaling
        switch type {
        case "default": scaling = .none
        case "linear": scaling = .linear(factor: try rope.required("factor"))
        case "dynamic": scaling = .dynamic(factor: try rope.required("factor"), maxPositions: maxPositions)
        case "llama3":
            scaling = .llama3(
                factor: try rope.required("factor"), lowFrequencyFactor: try rope.required("low_freq_factor"),
                highFrequencyFactor: try rope.required("high_freq_factor"),
                originalPositions: try rope.positive("original_max_position_embeddings", default: maxPositions))
        case "yarn": scaling = .yarn(try rope.yarn(maxPositions: maxPositions))
        default:
            throw error(
                "rope_type", "\"\(type)\" is not supported; those that are: default, linear, dynamic, llama3, yarn")
        }
        guard theta > 1, dimension > 2 || scaling == .none else {
            throw error("rope_theta", "expected a number above 1, found \(theta)")
        }
        return RotaryEmbedding(dimension: dimension, theta: theta, scaling: scaling)
    }

    private func required(_ key: String) throws -> Double {
        guard present(key) != nil else { throw error(key, "the key is missing from the rope scaling") }
        return try positiveNumber(key, default: 1)
    }

    private func positiveNumber(_ key: String, default fallback: Double) throws -> Double {
        let value = try number(key, default: fallback)
        guard value > 0, value.isFinite else { throw error(key, "expected a positive number, found \(value)") }
        return value
    }

    private func yarn(maxPositions: Int) throws -> RotaryEmbedding.YaRN {
        let original = try positive("original_max_position_embeddings", default: maxPositions)
        let factor = try positiveNumber("factor", default: Double(maxPositions) / Double(original))
        func magnitude(_ scale: Double, _ weight: Double) -> Double {
            scale <= 1 ? 1 : 0.1 * weight * logarithm(scale) + 1
        }
        var attention = magnitude(factor, 1)
        if let mscale = present("mscale")?.double, let all = present("mscale_all_dim")?.double, mscale != 0, all != 0 {
            attention = magnitude(factor, mscale) / magnitude(factor, all)
        }
        return RotaryEmbedding.YaRN(
            factor: factor, originalPositions: original, betaFast: try positiveNumber("beta_fast", default: 32),
            betaSlow: try positiveNumber("beta_slow", default: 1), truncates: try bool("truncate", default: true),
            attentionFactor: try positiveNumber("attention_factor", default: attention))
    }
}
