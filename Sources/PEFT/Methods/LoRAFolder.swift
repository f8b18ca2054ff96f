import Formats

extension LoRA {
    /// What peft 0.21.2 writes for `LORA` beside the fields that Graft computes with.
    public static let folderFields = FolderFields(
        neutral: [
            "alora_invocation_tokens": nil, "arrow_config": nil, "corda_config": nil, "ensure_weight_tying": false,
            "eva_config": nil, "fan_in_fan_out": false, "kasa_config": nil, "layer_replication": nil,
            "loftq_config": [:], "lora_bias": false, "lora_ga_config": nil, "megatron_config": nil,
            "megatron_core": "megatron.core", "monteclora_config": nil, "qalora_group_size": 16,
            "target_parameters": nil, "trainable_token_indices": nil, "use_bdlora": nil, "use_qalora": false,
            "velora_config": nil,
        ],
        // The layers of Graft's models are no Conv1D, so fan_in_fan_out is as without effect as in peft; the others
        // prepare the start of a training.
        inert: [
            "corda_config", "eva_config", "fan_in_fan_out", "loftq_config", "lora_ga_config", "megatron_core",
            "qalora_group_size",
        ],
        own: ["loraplus_lr_ratio"], decimals: ["lora_dropout"],
        adaptedBiases: "lora_only")

    /// The start of a training that is over says nothing about the adapter, unless it has changed the base model.
    ///
    /// - Throws: `PEFTError` when it has.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON {
        guard field == "init_lora_weights", let name = value.string?.lowercased() else { return value }
        if ["pissa", "olora", "corda", "loftq", "lora_ga"].contains(where: name.hasPrefix) {
            throw PEFTError(
                "init_lora_weights: \"\(name)\" belongs to a changed base model, which the folder lacks; save the "
                    + "adapter relative to the original one (peft: save_pretrained with "
                    + "path_initial_model_for_weight_conversion)")
        }
        return name == "eva" ? true : value
    }
}
