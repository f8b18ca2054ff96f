import Formats
import Torch

/// Values of LoRA's fields that change what an adapter computes in ways that Graft does not.
enum Refusals {
    static let all: [(key: String, value: JSON)] = [
        ("lora_bias", true), ("use_qalora", true), ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["experts.w1"]), ("trainable_token_indices", [1, 2]), ("alora_invocation_tokens", [3]),
        ("use_bdlora", ["nblocks": 2]), ("arrow_config", ["top_k": 3]), ("kasa_config", ["a": 1]),
        ("velora_config", ["num_groups": 4]), ("monteclora_config", ["n": 2]), ("megatron_config", ["x": 1]),
        ("ensure_weight_tying", true), ("enable_lora", [true, false, true]), ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"), ("init_lora_weights", "OLoRA"), ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"), ("init_lora_weights", "lora_ga"), ("init_lora_weights", "something"),
    ]
}

/// Settings that ask for more memory than any machine has.
enum HostileSettings {
    static let all: [(method: String, key: String, value: JSON)] = [
        ("lora", "r", 1_000_000_000_000_000), ("lora", "r", JSON(Int.max)), ("dora", "r", JSON(Int.max / 2)),
        ("lora", "rank_pattern", ["q_proj": 4_611_686_018_427_387_904]), ("lora", "r", -1), ("lora", "r", 1.5),
        ("lorta", "r", JSON(Int.max)), ("capaboost-lora", "r", JSON(Int.max)),
        ("capaboost-lora", "num_layer", JSON(Int.max)), ("lora", "rank_pattern", ["(": 3]),
        ("melora", "r", JSON(Int.max)), ("melora", "l_num", JSON(Int.max)), ("loretta-rep", "r", JSON(Int.max)),
        ("loretta-rep", "tensor_rank", JSON(Int.max)), ("miss", "r", JSON(Int.max)), ("bone", "r", JSON(Int.max)),
        ("houlsby", "r", JSON(Int.max)), ("pfeiffer", "reduction_factor", 1e-300),
        ("capaboost-padapter", "num_layer", JSON(Int.max)), ("prefix-tuning", "num_virtual_tokens", JSON(Int.max)),
        ("prompt-tuning", "num_virtual_tokens", JSON(Int.max)), ("dept", "max_length", JSON(Int.max)),
        ("dept", "r", JSON(Int.max)), ("p-tuning", "encoder_hidden_size", JSON(Int.max)),
        ("p-tuning", "encoder_num_layers", JSON(Int.max)),
        ("hut", "r", JSON(Int.max)), ("adalora", "init_r", JSON(Int.max)), ("adalora", "tfinal", JSON(Int.min)),
    ]
}

/// Configurations of one and the same adapter as releases of peft wrote them.
enum OldConfigurations {
    static let all: [(version: String, json: String)] = [
        (
            "0.3",
            """
            {"base_model_name_or_path": "tiny", "bias": "none", "enable_lora": null, "fan_in_fan_out": false,
             "inference_mode": true, "init_lora_weights": true, "lora_alpha": 6, "lora_dropout": 0.05,
             "merge_weights": false, "modules_to_save": null, "peft_type": "LORA", "r": 4,
             "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
            """
        ),
        (
            "0.7",
            """
            {"alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "tiny", "bias": "none",
             "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null,
             "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 6, "lora_dropout": 0.1,
             "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA",
             "r": 4, "rank_pattern": {}, "revision": null, "target_modules": ["v_proj", "q_proj"],
             "task_type": "CAUSAL_LM"}
            """
        ),
        (
            "0.11",
            """
            {"alpha_pattern": {}, "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "x"},
             "base_model_name_or_path": "tiny", "bias": "none", "fan_in_fan_out": true, "inference_mode": true,
             "init_lora_weights": "gaussian", "layer_replication": null, "layers_pattern": "",
             "layers_to_transform": [],
             "loftq_config": {}, "lora_alpha": 6.0, "lora_dropout": 0, "megatron_config": null,
             "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": 4,
             "rank_pattern": null, "revision": null, "target_modules": ["v_proj", "q_proj"], "task_type": null,
             "use_dora": false, "use_rslora": false}
            """
        ),
        (
            "0.14",
            """
            {"alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "tiny", "bias": "none",
             "eva_config": {"rho": 2.0}, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
             "init_lora_weights": "eva", "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
             "loftq_config": {}, "lora_alpha": 6, "lora_bias": false, "lora_dropout": 0.1, "megatron_config": null,
             "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": 4, "rank_pattern": {},
             "revision": null, "target_modules": ["v_proj", "q_proj"], "task_type": "CAUSAL_LM", "use_dora": false,
             "use_rslora": false}
            """
        ),
        (
            "0.18",
            """
            {"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
             "base_model_name_or_path": "tiny", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
             "eva_config": null, "exclude_modules": [], "fan_in_fan_out": false, "inference_mode": true,
             "init_lora_weights": "orthogonal", "layer_replication": null, "layers_pattern": null,
             "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 6, "lora_bias": false,
             "lora_dropout": 0.1, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
             "peft_type": "LORA", "peft_version": "0.18.0", "qalora_group_size": 16, "r": 4, "rank_pattern": {},
             "revision": null, "target_modules": "model\\\\.layers\\\\.\\\\d+\\\\.self_attn\\\\.(q|v)_proj",
             "target_parameters": [], "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false,
             "use_qalora": false, "use_rslora": false}
            """
        ),
    ]
}

/// Changes to an adapter's file that must not go unnoticed, and what the error says.
struct KeyFaults: Sendable {
    let name: String
    let says: [String]
    let change: @Sendable (inout KeyedList<Tensor>) throws -> Void

    private static let key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

    private static func renamed(_ tensors: KeyedList<Tensor>, _ name: (String) -> String) -> KeyedList<Tensor> {
        var result = KeyedList<Tensor>()
        for (key, tensor) in tensors { result.appendIfNew(key: name(key), value: tensor) }
        return result
    }

    static let all: [KeyFaults] = [
        KeyFaults(
            name: "one renamed",
            says: [
                "12 tensors in the file, 12 in the adapter, 11 agree", "1 is unknown", "q_proj.lora_a.weight\"",
                "did you mean \"\(key)\"?", "1 is missing",
            ]
        ) { $0 = renamed($0) { $0 == key ? key.replacing("lora_A", with: "lora_a") : $0 } },
        KeyFaults(
            name: "one dropped",
            says: ["11 tensors in the file, 12 in the adapter, 11 agree", "1 is missing, first \"\(key)\""]
        ) { $0[key] = nil },
        KeyFaults(
            name: "all renamed",
            says: [
                "12 tensors in the file, 12 in the adapter, 0 agree", "12 are unknown", "12 are missing", "\"other.",
            ]
        ) { $0 = renamed($0) { "other." + $0 } },
        KeyFaults(
            name: "adapter's name in the keys",
            says: ["0 agree", "lora_A.default.weight\"", "did you mean \"base_model.model.model.layers."]
        ) { $0 = renamed($0) { $0.replacing(".weight", with: ".default.weight") } },
        KeyFaults(name: "one more", says: ["13 tensors in the file", "1 is unknown, first \"lm_head.weight\""]) {
            $0["lm_head.weight"] = try Tensor.zeros([2, 2])
        },
        KeyFaults(name: "another shape", says: ["11 agree", "1 has another shape", "[3, 48]", "[4, 48]", key]) {
            $0[key] = try $0[key]?.narrowed(0, start: 0, length: 3)
        },
        KeyFaults(name: "integers", says: [key, "I64"]) { $0[key] = try $0[key]?.to(dtype: .int64) },
        KeyFaults(name: "empty", says: ["empty"]) { $0 = [:] },
    ]
}
