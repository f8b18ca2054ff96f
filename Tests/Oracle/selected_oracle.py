"""Models whose parameters are changed in places: the whole forward pass and its gradients, dense and in float64."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from support import as_ids, store


def _weights(folder):
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    weights = {name: value.double() for name, value in tensors.items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def _config(folder):
    return json.loads(Path(folder, "config.json").read_text())


def _logits(w, config, ids):
    """The logits of the Llama family without rope scaling or windows, every product written out in float64."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    time = ids.shape[1]
    angle = torch.arange(time).double()[:, None] * theta ** (-torch.arange(0, dim, 2).double() / dim)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    causal = torch.full((time, time), -math.inf, dtype=torch.float64).triu(1)

    def norm(x, name):
        return w[name] * x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def linear(x, name):
        y = torch.einsum("...i,oi->...o", x, w[name + ".weight"])
        return y + w[name + ".bias"] if name + ".bias" in w else y

    def split(x, count, norm_name=None):
        x = x.reshape(*x.shape[:2], count, dim)
        return (norm(x, norm_name) if norm_name in w else x).transpose(1, 2)

    def rotate(x):
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        path = f"model.layers.{layer}."
        h = norm(x, path + "input_layernorm.weight")
        attention = path + "self_attn."
        q = rotate(split(linear(h, attention + "q_proj"), heads, attention + "q_norm.weight"))
        k = rotate(split(linear(h, attention + "k_proj"), kv, attention + "k_norm.weight"))
        v = split(linear(h, attention + "v_proj"), kv)
        k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(dim) + causal).softmax(-1)
        x = x + linear((scores @ v).transpose(1, 2).reshape(*ids.shape, -1), attention + "o_proj")
        h = norm(x, path + "post_attention_layernorm.weight")
        gate = linear(h, path + "mlp.gate_proj")
        x = x + linear(gate * gate.sigmoid() * linear(h, path + "mlp.up_proj"), path + "mlp.down_proj")
    return linear(norm(x, "model.norm.weight"), "lm_head")


def _loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def _changed(weights, values, indices, how):
    """A copy of the weights with values put where `how` says: {parameter: {"axis": 0, 1 or null, "scale": s}}.

    With an axis, scaled values are added to the slices at the indices; without one, the values are the parameter.
    """
    weights = dict(weights)
    for name, place in how.items():
        value = values[name] * place.get("scale", 1)
        if place.get("axis") is None:
            weights[name] = value
            if name == "model.embed_tokens.weight" and place.get("tied"):
                weights["lm_head.weight"] = value
            continue
        update = torch.zeros_like(weights[name])
        for j, index in enumerate(indices[name].tolist()):
            if place["axis"] == 1:
                update[:, index] = value[:, j]
            else:
                update[index, :] = value[j, :]
        weights[name] = weights[name] + update
    return weights


def _read(tensors):
    stored = load_file(tensors)
    kinds = {}
    for key, value in stored.items():
        name, kind = key.split("|")
        kinds.setdefault(kind, {})[name] = value
    return {name: value.double() for name, value in kinds["values"].items()}, kinds.get("indices", {})


def evaluate(model_folder, tensors, how, ids, output):
    """Writes "logits" and for every changed parameter "gradient|<name>" of the mean next-token loss; returns the loss."""
    ids = as_ids(ids)
    values, indices = _read(tensors)
    with torch.enable_grad():
        values = {name: value.requires_grad_() for name, value in values.items()}
        logits = _logits(_changed(_weights(model_folder), values, indices, how), _config(model_folder), ids)
        loss = _loss(logits, ids)
        loss.backward()
    found = {f"gradient|{name}": value.grad for name, value in values.items()}
    store(output, {"logits": logits, **found})
    return loss.item()


def dense_gradients(model_folder, tensors, how, ids, output, names):
    """Writes the gradient with respect to whole weights of the changed model, as "gradient|<name>"."""
    ids = as_ids(ids)
    values, indices = _read(tensors)
    weights = _changed(_weights(model_folder), values, indices, how)
    with torch.enable_grad():
        whole = {name: weights[name].detach().clone().requires_grad_() for name in names}
        _loss(_logits({**weights, **whole}, _config(model_folder), ids), ids).backward()
    store(output, {f"gradient|{name}": value.grad for name, value in whole.items()})


def permuted(model_folder, tensors, ids, output, seed):
    """Writes "plain", the logits after a co-permutation alone, and "logits" with the blocks added as dense slices.

    Each layer's heads and channels are put in an order in which the chosen ones come first and the others follow at
    random. Shared key/value heads are first written out, one for each query head, so that heads can be permuted singly.
    """
    ids, config, w = as_ids(ids), _config(model_folder), _weights(model_folder)
    values, indices = _read(tensors)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    generator = torch.Generator().manual_seed(seed)

    def order(chosen, count):
        others = [i for i in torch.randperm(count, generator=generator).tolist() if i not in set(chosen)]
        return torch.tensor(list(chosen) + others)

    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        features = indices.get(attention + "o_proj.weight", torch.tensor([], dtype=torch.long))
        chosen = features[::dim] // dim
        rows = torch.cat([torch.arange(h * dim, (h + 1) * dim) for h in order(chosen.tolist(), heads)])
        for name in ("q_proj", "k_proj", "v_proj"):
            for part in (".weight", ".bias"):
                if attention + name + part not in w:
                    continue
                value = w[attention + name + part]
                if name != "q_proj":
                    value = value.reshape(kv, dim, *value.shape[1:]).repeat_interleave(heads // kv, 0).flatten(0, 1)
                w[attention + name + part] = value[rows]
        w[attention + "o_proj.weight"] = w[attention + "o_proj.weight"][:, rows]
        channels = order(indices.get(mlp + "down_proj.weight", torch.tensor([])).long().tolist(), config["intermediate_size"])
        for name in ("gate_proj", "up_proj"):
            for part in (".weight", ".bias"):
                if mlp + name + part in w:
                    w[mlp + name + part] = w[mlp + name + part][channels]
        w[mlp + "down_proj.weight"] = w[mlp + "down_proj.weight"][:, channels]
    config = {**config, "num_key_value_heads": heads}
    plain = _logits(w, config, ids)
    for name, block in values.items():
        w[name] = w[name].clone()
        w[name][:, : block.shape[1]] += block
    store(output, {"plain": plain, "logits": _logits(w, config, ids)})


def largest_scores(tensors, count, exponent, epsilon, rule):
    """The flat positions, over all tensors in order, of the scalars with the largest ID3 score, by a full sort."""
    stored = load_file(tensors)
    order = range(len(stored) // 2)
    w = torch.cat([stored[f"w{i}"] for i in order]).double()
    g = torch.cat([stored[f"g{i}"] for i in order]).double().abs()
    if rule == "pafi":
        score = -w.abs()
    elif exponent == 0:
        score = g
    else:
        score = g.clamp_min(1e-38).log() - exponent * (w.abs() + epsilon).log()
    return sorted(torch.sort(score, descending=True, stable=True).indices[:count].tolist())


def make_norms(model_folder, folder, seed, config):
    """Saves an LN_TUNING adapter of peft's with random gains; returns its tensors and how many values it trains."""
    from peft import LNTuningConfig, get_peft_model
    from support import fresh_model, randomise

    model = get_peft_model(fresh_model(model_folder), LNTuningConfig(task_type="CAUSAL_LM", **config))
    randomise([(name, p) for name, p in model.named_parameters() if p.requires_grad], seed)
    model.save_pretrained(folder)
    return {
        "trainable": model.get_nb_trainable_parameters()[0],
        "tensors": list(load_file(Path(folder, "adapter_model.safetensors"))),
    }


def logits_with_norms(model_folder, adapter_folder, ids, output):
    """Writes "logits" of the model with an adapter that peft loads; returns the keys on which they differ."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from support import fresh_model

    model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder).eval()
    found = set(load_file(Path(adapter_folder, "adapter_model.safetensors")))
    expected = set(get_peft_model_state_dict(model))
    store(output, {"logits": model(input_ids=as_ids(ids), use_cache=False).logits})
    return {"missing": sorted(expected - found), "unexpected": sorted(found - expected)}
