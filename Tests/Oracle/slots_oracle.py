"""Adapters that act beside the weights (scaled outputs, bottlenecks, prefixes, prompts), written out in float64.

`evaluate` is a Llama from its definition, one operator after the other, with each method's formula in its place; no
library of models or adapters takes part. The other functions are peft's own prompt learning, prefix tuning and (IA)^3.
"""

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support import as_ids, fresh_model, store

_ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
}


class _Adapter:
    """The frozen model's behaviour; methods change one part of it each."""

    def __init__(self, tensors, settings, sizes):
        self.tensors, self.settings, self.sizes = tensors, settings, sizes

    def linear(self, path, x, weight, bias):
        y = x @ weight.T
        return y if bias is None else y + bias

    def sublayer(self, path, output, given, stream):
        return output

    def prefix(self, layer):
        return None

    def gate(self, layer):
        return None

    def prompt(self):
        return None

    def offset(self, time):
        return 0.0


class _IA3(_Adapter):
    def linear(self, path, x, weight, bias):
        vector = self.tensors.get(f"base_model.model.{path}.ia3_l")
        if vector is None:
            return super().linear(path, x, weight, bias)
        if any(path.endswith(name) for name in self.settings["feedforward_modules"]):
            return super().linear(path, x * vector.flatten(), weight, bias)
        return super().linear(path, x, weight, bias) * vector.flatten()


class _Bottleneck(_Adapter):
    def sublayer(self, path, output, given, stream):
        prefix = f"base_model.model.{path}."
        if prefix + "adapter_down.weight" not in self.tensors:
            return output
        down, c_down, up, c_up = (
            self.tensors[f"{prefix}adapter_{side}.{kind}"] for side in ("down", "up") for kind in ("weight", "bias")
        )
        source = {"output": output, "sum": stream + output, "input": given, "stream": stream}
        h = source[self.settings["adapter_input"]]
        act = _ACTIVATIONS[self.settings["non_linearity"]]
        branches = self.settings.get("num_layer", 0)
        if not branches:
            inner = act(h @ down.T + c_down) @ up.T
        else:
            inner = 0.0
            for branch in range(branches):
                mask_down = self.tensors[f"{path}.adapter_down.mask.{branch}"]
                mask_up = self.tensors[f"{path}.adapter_up.mask.{branch}"]
                inner = inner + act(h @ (down * mask_down).T + c_down) @ (up * mask_up).T
        return output + self.settings["scale"] * (inner + c_up)


class _Prefix(_Adapter):
    def prefix(self, layer):
        heads, dim = self.sizes["kv_heads"], self.sizes["head_dim"]
        table = self.tensors.get("prompt_embeddings", self.tensors.get("base_model.prefix_embeddings"))
        if table is None:
            t = {name.removeprefix("base_model.prompt_encoder."): value for name, value in self.tensors.items()}
            inner = torch.tanh(t["embedding.weight"] @ t["transform.0.weight"].T + t["transform.0.bias"])
            part = inner @ t[f"transform.2.{layer}.weight"].T + t[f"transform.2.{layer}.bias"]
        else:
            width = 2 * heads * dim
            part = table[:, layer * width : (layer + 1) * width]
        # The first half are keys, the second values, head by head.
        pair = part.reshape(part.shape[0], 2, heads, dim)
        return pair[:, 0], pair[:, 1]

    def gate(self, layer):
        gates = self.tensors.get("base_model.prefix_gate")
        return None if gates is None else gates[layer]


class _Prompt(_Adapter):
    def prompt(self):
        table = self.tensors.get("prompt_embeddings")
        if table is not None:
            return table
        t = {name.removeprefix("base_model.prompt_encoder."): value for name, value in self.tensors.items()}
        x = t["embedding.weight"]
        for index in (0, 2, 4):
            x = x @ t[f"mlp_head.{index}.weight"].T + t[f"mlp_head.{index}.bias"]
            x = x.clamp(min=0) if index < 4 else x
        return x


class _DePT(_Prompt):
    def offset(self, time):
        a, b = self.tensors["base_model.dept_A"], self.tensors["base_model.dept_B"]
        scale = self.settings["alpha"] / math.sqrt(a.shape[1])
        table = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float64)
        for k in range(a.shape[1]):
            table = table + scale * a[:, k : k + 1] * b[k : k + 1, :]
        return table[:time]


_METHODS = {"ia3": _IA3, "bottleneck": _Bottleneck, "prefix": _Prefix, "prompt": _Prompt, "dept": _DePT}


def _norm(x, weight, epsilon):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight


def _rotated(x, positions, theta):
    """Rotary positions: feature i turns with feature i + dim/2. x is [time, heads, dim]."""
    dim = x.shape[-1]
    rates = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions.double()[:, None] * rates
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attention(adapter, weights, sizes, path, layer, x):
    time = x.shape[0]
    heads, kv_heads, dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]

    def project(name, count):
        y = adapter.linear(f"{path}.{name}", x, weights[f"{path}.{name}.weight"], weights.get(f"{path}.{name}.bias"))
        return y.reshape(time, count, dim)

    q, k, v = project("q_proj", heads), project("k_proj", kv_heads), project("v_proj", kv_heads)
    pair = adapter.prefix(layer)
    ahead = 0 if pair is None else pair[0].shape[0]
    positions = torch.arange(ahead, ahead + time)
    q, k = _rotated(q, positions, sizes["theta"]), _rotated(k, positions, sizes["theta"])
    gate = adapter.gate(layer)
    rows = []
    for t in range(time):
        outs = []
        for h in range(heads):
            group = h * kv_heads // heads
            scores = torch.exp(k[: t + 1, group] @ q[t, h] / math.sqrt(dim))
            plain = scores @ v[: t + 1, group] / scores.sum()
            if pair is None:
                outs.append(plain)
                continue
            # Attention to the prefix alone, and the share that it has of all attention.
            front = torch.exp(pair[0][:, group] @ q[t, h] / math.sqrt(dim))
            share = front.sum() / (front.sum() + scores.sum())
            if gate is not None:
                share = share * gate
            outs.append((1 - share) * plain + share * (front @ pair[1][:, group] / front.sum()))
        rows.append(torch.cat(outs))
    name = f"{path}.o_proj"
    return adapter.linear(name, torch.stack(rows), weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _row(adapter, weights, sizes, ids):
    """The logits of the real tokens of one row."""
    stream = weights["model.embed_tokens.weight"][ids] + adapter.offset(len(ids))
    prompt = adapter.prompt()
    if prompt is not None:
        stream = torch.cat([prompt, stream])
    for layer in range(sizes["layers"]):
        block = f"model.layers.{layer}"
        given = _norm(stream, weights[f"{block}.input_layernorm.weight"], sizes["epsilon"])
        path = f"{block}.self_attn"
        output = _attention(adapter, weights, sizes, path, layer, given)
        stream = stream + adapter.sublayer(path, output, given, stream)
        given = _norm(stream, weights[f"{block}.post_attention_layernorm.weight"], sizes["epsilon"])
        path = f"{block}.mlp"

        def project(name, x):
            full = f"{path}.{name}"
            return adapter.linear(full, x, weights[f"{full}.weight"], weights.get(f"{full}.bias"))

        output = project("down_proj", _ACTIVATIONS["silu"](project("gate_proj", given)) * project("up_proj", given))
        stream = stream + adapter.sublayer(path, output, given, stream)
    stream = _norm(stream, weights["model.norm.weight"], sizes["epsilon"])[-len(ids) :]
    return stream @ weights["lm_head.weight"].T


def evaluate(model, adapter, output, sizes, method, ids, settings=None):
    """Writes "logits" of rows of token ids, and the gradient of the mean next-token loss as "grad.<tensor>".

    `model` and `adapter` are safetensors files of the frozen weights and of the adapter's tensors by their names;
    a tensor of the adapter whose name is a weight's of the model takes that weight's place. Names with ".mask." are
    constants.
    """
    weights = {name: value.double() for name, value in load_file(model).items()}
    tensors = {name: value.double() for name, value in load_file(adapter).items()}
    with torch.enable_grad():
        for name, value in tensors.items():
            value.requires_grad_(".mask." not in name)
            own = name.removeprefix("base_model.model.")
            if own in weights:
                weights[own] = value
        part = _METHODS[method](tensors, settings or {}, sizes)
        rows = as_ids(ids)
        logits = torch.stack([_row(part, weights, sizes, row) for row in rows])
        scores = torch.log_softmax(logits[:, :-1], dim=-1)
        loss = -scores.gather(2, rows[:, 1:, None]).mean()
        loss.backward()
    found = {"logits": logits}
    for name, value in tensors.items():
        if value.grad is not None:
            found["grad." + name] = value.grad
    store(output, found)
    return {"loss": loss.item()}


# What peft does.


def _configuration(kind, config):
    import peft

    types = {
        "IA3": peft.IA3Config,
        "PREFIX_TUNING": peft.PrefixTuningConfig,
        "PROMPT_TUNING": peft.PromptTuningConfig,
        "P_TUNING": peft.PromptEncoderConfig,
    }
    return types[kind](**{"task_type": "CAUSAL_LM", **config})


def make_adapter(model_folder, folder, kind, seed, config):
    """Saves an adapter of a type of peft with random values; returns its trained count, tensors and configuration."""
    from peft import get_peft_model

    model = get_peft_model(fresh_model(model_folder), _configuration(kind, config)).eval()
    generator = torch.Generator().manual_seed(seed)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trainable:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(1 + 0.3 * noise if "ia3_" in name else 0.6 * noise)
    model.save_pretrained(folder)
    with safe_open(Path(folder, "adapter_model.safetensors"), "pt") as file:
        tensors = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    return {
        "trainable": model.get_nb_trainable_parameters()[0],
        "tensors": tensors,
        "config": json.loads(Path(folder, "adapter_config.json").read_text()),
    }


def answers(model_folder, adapter_folder, ids, output, new_tokens=0):
    """Writes peft's "logits", the loss of the next tokens and its gradients; returns loss and greedy new tokens."""
    from peft import PeftModel

    ids = as_ids(ids)
    model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder).eval()
    result = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=_next(ids))
    new = []
    if new_tokens:
        rows = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens,
            eos_token_id=None, pad_token_id=0,
        )
        new = rows[:, ids.shape[1] :].tolist()
    store(output, {"logits": result.logits[:, -ids.shape[1] :]})
    return {"loss": result.loss.item(), "new": new, "keys": _expected(model)}


def _next(ids):
    """Labels without each row's first token, which peft would let the last virtual token predict."""
    labels = ids.clone()
    labels[:, 0] = -100
    return labels


def _expected(model):
    from peft.utils import get_peft_model_state_dict

    return {name: list(value.shape) for name, value in get_peft_model_state_dict(model).items()}


def gradients(model_folder, adapter_folder, ids, output):
    """Writes peft's gradient of the mean next-token loss for each tensor of the adapter's file."""
    from peft import PeftConfig, PeftModel, get_peft_model
    from peft.utils import get_peft_model_state_dict

    ids = as_ids(ids)
    config = PeftConfig.from_pretrained(adapter_folder)
    with torch.enable_grad():
        if config.is_prompt_learning:
            # peft does not load these for training: the table goes into a new one.
            config.inference_mode = False
            model = get_peft_model(fresh_model(model_folder), config).eval()
            table = model.prompt_encoder["default"].embedding.weight
            table.data.copy_(load_file(Path(adapter_folder, "adapter_model.safetensors"))["prompt_embeddings"])
        else:
            model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder, is_trainable=True).eval()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=_next(ids)).loss.backward()
    if config.is_prompt_learning:
        return store(output, {"prompt_embeddings": table.grad})
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return store(output, get_peft_model_state_dict(model, state_dict=grads))


def merge(model_folder, adapter_folder, folder):
    """Saves peft's merged model as safetensors "weights"; returns the names of what differs from the base model."""
    from peft import PeftModel

    base = fresh_model(model_folder).state_dict()
    model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder).merge_and_unload()
    changed = {name: value for name, value in model.state_dict().items() if not torch.equal(value, base[name])}
    save_file({name: value.contiguous().clone() for name, value in changed.items()}, folder)
    return sorted(changed)


def encoded(config, tensors, output):
    """Writes the table that peft's P-tuning network makes of given tensors; returns the number of its parameters."""
    from peft import PromptEncoder

    config = _configuration("P_TUNING", {"num_transformer_submodules": 1, **config})
    encoder = PromptEncoder(config).eval()
    encoder.load_state_dict(load_file(tensors), strict=True)
    store(output, {"prompt_embeddings": encoder(torch.arange(config.num_virtual_tokens)[None])[0]})
    return sum(parameter.numel() for parameter in encoder.parameters())
