import Formats
import PEFT
import TestSupport
import Testing

/// A method's settings in peft's words, for the matrix of methods and selections.
private let variants: [(name: String, settings: KeyedList<JSON>)] = [
    ("LoRA", ["r": 4, "lora_alpha": 6]),
    ("rsLoRA", ["r": 3, "lora_alpha": 2, "use_rslora": true]),
    ("DoRA", ["r": 5, "lora_alpha": 7, "use_dora": true]),
]

/// A model and a selection of its parts.
private let selections: [(name: String, kind: String, fields: KeyedList<JSON>)] = [
    ("null", "llama", [:]),
    ("null in Qwen2", "qwen2", [:]),
    ("list", "llama", ["target_modules": ["k_proj", "o_proj", "down_proj"]]),
    ("whole paths", "qwen3", ["target_modules": ["model.layers.1.mlp.up_proj", "layers.2.self_attn.q_proj"]]),
    ("regex", "mistral", ["target_modules": ".*\\.[02]\\.(self_attn|mlp)\\.(q|v|gate)_proj"]),
    ("all-linear", "llama-biases", ["target_modules": "all-linear"]),
    ("exclude list", "llama", ["target_modules": "all-linear", "exclude_modules": ["q_proj", "1.mlp.up_proj"]]),
    ("exclude regex", "qwen2", ["target_modules": ["q_proj", "up_proj"], "exclude_modules": ".*layers\\.[01]\\..*"]),
    ("one block", "llama", ["target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1]),
    ("blocks", "qwen3", ["target_modules": ["v_proj", "gate_proj"], "layers_to_transform": [0, 2]]),
    (
        "blocks by pattern", "llama",
        ["target_modules": ["v_proj"], "layers_to_transform": [2], "layers_pattern": "layers"]
    ),
    (
        "blocks and a whole path", "llama",
        ["target_modules": ["q_proj", "model.layers.2.mlp.up_proj"], "layers_to_transform": [0]]
    ),
    (
        "rank pattern", "llama",
        ["target_modules": ["q_proj", "v_proj"], "rank_pattern": ["layers.1.self_attn.q_proj": 7, "v_proj": 2]]
    ),
    (
        "alpha pattern", "qwen2",
        [
            "target_modules": ["q_proj", "o_proj"], "alpha_pattern": [".*\\.[01]\\..*q_proj": 11, "o_proj": 3],
            "rank_pattern": ["o_proj": 2],
        ]
    ),
    ("head saved", "llama", ["modules_to_save": ["lm_head"]]),
    ("tied head saved", "llama-tied", ["modules_to_save": ["lm_head"]]),
    ("embedding saved", "qwen3-tied", ["modules_to_save": ["embed_tokens"]]),
    ("norms saved", "qwen3", ["modules_to_save": ["norm"]]),
    ("MLP saved", "llama", ["target_modules": "all-linear", "modules_to_save": ["1.mlp", "model.norm"]]),
    ("all biases", "qwen2", ["bias": "all", "target_modules": ["q_proj", "up_proj"]]),
    ("own biases", "qwen2", ["bias": "lora_only", "target_modules": ["k_proj", "o_proj"]]),
    ("all biases everywhere", "llama-biases", ["bias": "all", "target_modules": ["q_proj", "down_proj"]]),
    ("head adapted", "llama", ["target_modules": ["q_proj", "lm_head"]]),
    ("tied head adapted", "qwen2-tied", ["target_modules": ["v_proj", "lm_head"]]),
]

@Suite("Exchange with peft", .serialized)
struct PeftExchangeTests {
    @Test("Every selection, both ways", arguments: variants.indices, selections.indices)
    func everySelection(variant: Int, selection: Int) async throws {
        var config = variants[variant].settings
        for (key, value) in selections[selection].fields { config[key] = value }
        try await AdapterExchange(kind: selections[selection].kind, config: config, seed: variant + 3).check()
    }

    @Test("Random configurations, both ways", arguments: 0..<24)
    func randomConfigurations(seed: Int) async throws {
        var random = SeededGenerator(seed: UInt64(seed) &* 0x9E37 &+ 11)
        let kinds = ["llama", "llama-tied", "llama-biases", "qwen2", "qwen2-tied", "qwen3", "mistral"]
        let kind = kinds[Int.random(in: kinds.indices, using: &random)]
        try await AdapterExchange(kind: kind, config: randomConfiguration(&random), seed: seed).check()
    }

    private func randomConfiguration(_ random: inout SeededGenerator) -> KeyedList<JSON> {
        let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        func some(_ items: [String], atLeast least: Int) -> [JSON] {
            items.shuffled(using: &random).prefix(Int.random(in: least...items.count, using: &random)).map { JSON($0) }
        }
        var config: KeyedList<JSON> = [
            "r": JSON(Int.random(in: 1...9, using: &random)),
            "lora_alpha": JSON(Int.random(in: 1...20, using: &random)),
        ]
        switch Int.random(in: 0..<4, using: &random) {
        case 0: config["use_rslora"] = true
        case 1: config["use_dora"] = true
        case 2: (config["use_dora"], config["use_rslora"]) = (true, true)
        default: break
        }
        switch Int.random(in: 0..<4, using: &random) {
        case 0: config["target_modules"] = "all-linear"
        case 1: config["target_modules"] = JSON(".*\\.[0-9]\\..*(" + modules.prefix(4).joined(separator: "|") + ")")
        default:
            config["target_modules"] = .array(some(modules, atLeast: 2))
            if Bool.random(using: &random) { config["layers_to_transform"] = [0, 2] }
        }
        if Bool.random(using: &random) { config["exclude_modules"] = ["1.self_attn.q_proj", "0.mlp.up_proj"] }
        if Bool.random(using: &random) { config["rank_pattern"] = [".*[02]\\..*": 3, "k_proj": 6] }
        if Bool.random(using: &random) { config["alpha_pattern"] = ["(q|up)_proj": 5, "layers.2.mlp.down_proj": 9] }
        if Int.random(in: 0..<3, using: &random) == 0 {
            config["modules_to_save"] = .array(some(["lm_head", "embed_tokens", "input_layernorm"], atLeast: 1))
        }
        config["bias"] = ["none", "none", "all", "lora_only"].randomElement(using: &random)
        return config
    }
}
