"""What transformers makes of logits before it draws a token from them."""

import torch
from safetensors.torch import load_file

from support import load_model, store


def scores(folder, logits, output, seen, temperature, top_k, top_p, repetition_penalty):
    """Writes "scores", what `generate` draws from: "logits" [rows, vocabulary] of a file after all its processors.

    The model only lends its `generate`. `seen` are the tokens before the one that is drawn, the same for all rows.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num_beams=1,
    )
    values = load_file(logits)["logits"]
    ids = torch.tensor(seen).repeat(values.shape[0], 1)
    processors = load_model(folder)._get_logits_processor(config, input_ids_seq_length=ids.shape[1], device="cpu")
    return {"processors": [type(item).__name__ for item in processors], **store(output, {"scores": processors(ids, values)})}


def make_gguf(folder, path, quantisation=None):
    """Writes a folder's model as a GGUF file as llama.cpp's converter lays it out: float32, matrices perhaps quantised."""
    import numpy
    from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, quants

    model = load_model(folder)
    config = model.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    rope = dict(config.rope_parameters)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads

    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_eos_token_id(config.eos_token_id)
    if config.model_type == "mistral" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(getattr(RopeScalingType, rope["rope_type"].upper()))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** -(torch.arange(0, dim, 2).float() / dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())

    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = value.float().numpy()
        for part, count in (("q_proj", heads), ("k_proj", groups)):
            # GGUF's rotation is of neighbours, transformers' of halves.
            if architecture == "llama" and f".{part}." in name:
                value = value.reshape(count, 2, dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
        value = numpy.ascontiguousarray(value)
        if quantisation and value.ndim == 2:
            kind = GGMLQuantizationType[quantisation]
            writer.add_tensor(_gguf_name(name), quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name):
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, kind = name.rpartition(".")
    if module in fixed:
        return f"{fixed[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[rest]}.{kind}"
