"""Tiny random models of each supported family, and what transformers computes with a model folder or a GGUF file."""

import json
from pathlib import Path

import torch

from support import CACHE, as_ids, load_model, randomise, store

# hidden 48 = 6 heads of 8; sizes are odd on purpose where the architecture lets them be.
_COMMON = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=87,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def _rope(kind, theta=10000.0, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


_YARN = dict(factor=4.0, original_max_position_embeddings=64)

# kind -> (model_type, what differs from _COMMON)
KINDS = {
    "llama": ("llama", {}),
    "llama-mha": ("llama", {"num_key_value_heads": 6}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "llama-head-dim": ("llama", {"head_dim": 20, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "llama-relu": ("llama", {"hidden_act": "relu"}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": (
        "llama",
        _rope(
            "llama3",
            theta=500.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama-linear": ("llama", _rope("linear", factor=4.0)),
    "llama-dynamic": ("llama", {**_rope("dynamic", factor=2.0), "max_position_embeddings": 16}),
    "llama-yarn": ("llama", _rope("yarn", **_YARN)),
    "llama-yarn-full": (
        "llama",
        _rope("yarn", **_YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3),
    ),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "num_hidden_layers": 4},
    ),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3-tied": (
        "qwen3",
        {"head_dim": 16, "tie_word_embeddings": True, "num_attention_heads": 5, "num_key_value_heads": 1},
    ),
    "qwen3-sliding": (
        "qwen3",
        {"head_dim": 12, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
}


def kinds():
    """The kinds that `make_model` knows."""
    return sorted(KINDS)


def make_model(kind, seed, folder, dtype="float32", overrides=None, legacy_config=False, max_shard_size="5GB"):
    """Saves a random model of a kind; `overrides` changes fields of its configuration.

    `legacy_config` writes config.json with `rope_theta`, `rope_scaling` and `torch_dtype`, as releases of transformers
    before 5 did; most published folders are of that form.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, changes = KINDS[kind]
    config = AutoConfig.for_model(model_type, **{**_COMMON, **changes, **(overrides or {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model.named_parameters(), seed, tied=model.config.tie_word_embeddings)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if legacy_config:
        _write_legacy_config(Path(folder) / "config.json")
    return {"config": json.loads((Path(folder) / "config.json").read_text()), "files": _files(folder)}


def _write_legacy_config(path):
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2))


def _files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def logits(folder, ids, output, dtype="float32", attention_mask=None, hidden_states=False):
    """Writes "logits" [batch, time, vocabulary] and, if asked, "hidden.0" (embeddings), "hidden.1", ..."""
    model = load_model(folder, dtype)
    mask = None if attention_mask is None else torch.tensor(attention_mask)
    result = model(as_ids(ids), attention_mask=mask, output_hidden_states=hidden_states, use_cache=False)
    tensors = {"logits": result.logits.float()}
    for index, hidden in enumerate(result.hidden_states or ()):
        tensors[f"hidden.{index}"] = hidden.float()
    return store(output, tensors)


def loss(folder, ids, labels, dtype="float32"):
    """Summed negative log-likelihood and count of the labelled tokens; a label of -100 is left out."""
    labels = as_ids(labels)[:, 1:]
    scores = load_model(folder, dtype)(as_ids(ids), use_cache=False).logits.float()[:, :-1]
    total = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1).double(), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return {"sum": total.item(), "tokens": int((labels != -100).sum())}


def generate_greedy(folder, ids, n, repetition_penalty=1.0, eos=None):
    """The `n` most likely next tokens of each row (fewer where `eos`, a list, stops it): new tokens only."""
    ids = as_ids(ids)
    rows = load_model(folder).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n,
        repetition_penalty=repetition_penalty,
        eos_token_id=eos,
        pad_token_id=0,
        use_cache=True,
    )
    new = rows[:, ids.shape[1] :].tolist()
    return [_until(row, eos or []) for row in new]


def _until(row, stops):
    for index, token in enumerate(row):
        if token in stops:
            return row[: index + 1]
    return row


def rope_frequencies(folder, length):
    """Inverse frequencies and the scale of cosines and sines that the model uses for sequences of a length."""
    rotary = load_model(folder).model.rotary_emb
    cos, sin = rotary(torch.zeros(1, 1, 1), torch.arange(length).unsqueeze(0))
    return {
        "inverse_frequencies": rotary.inv_freq.tolist(),
        "scale": float(rotary.attention_scaling),
        "cos": cos[0, -1].tolist(),
        "sin": sin[0, -1].tolist(),
    }


def gguf_folder(path):
    """The model of a GGUF file, dequantised to float32 and saved as a folder by transformers; made once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(path).resolve()
    status = path.stat()
    folder = CACHE / f"{path.stem}-{status.st_size}-{int(status.st_mtime)}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        # transformers refuses to save what it loaded from a GGUF file: a plain model takes over its weights.
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        (folder / "complete").touch()
    return str(folder)


def gguf_logits(path, ids, output):
    """As `logits`, for a GGUF file."""
    return logits(gguf_folder(path), ids, output)


def weights(folder, output):
    """Writes every parameter by its name in the model (float32), tied ones under both names."""
    state = load_model(folder).state_dict()
    return store(output, {name: value.float() for name, value in state.items()})


def check_folder(folder, ids, output):
    """Loads a folder that Graft wrote and reports the keys that transformers misses or does not expect."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    scores = model.eval()(as_ids(ids), use_cache=False).logits
    store(output, {"logits": scores})
    return {
        "missing": sorted(map(str, report["missing_keys"])),
        "unexpected": sorted(map(str, report["unexpected_keys"])),
        "mismatched": sorted(map(str, report["mismatched_keys"])),
        "tied": model.config.tie_word_embeddings,
        "dtype": json.loads((Path(folder) / "config.json").read_text()).get("dtype"),
    }
