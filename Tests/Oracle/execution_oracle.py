"""Ways to run a stack of blocks, written out in float64: two coupled streams (MEFT), and layers trained in turns (IST).

The model is a Llama from its definition, one operator after the other; gradients are torch's own. Nothing is recomputed
and nothing is inverted here.
"""

import math

import torch
from safetensors.torch import load_file

from support import as_ids, store


class _Model:
    """A Llama of pre-norm blocks over the tensors of a file, all rows of one length."""

    def __init__(self, path, sizes):
        self.weights = {name: value.double() for name, value in load_file(path).items()}
        self.sizes = sizes

    def linear(self, path, x):
        y = x @ self.weights[path + ".weight"].T
        bias = self.weights.get(path + ".bias")
        return y if bias is None else y + bias

    def norm(self, path, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.sizes["epsilon"]) * self.weights[path + ".weight"]

    def rotated(self, x):
        time, dim = x.shape[-2:]
        rates = self.sizes["theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.arange(time, dtype=torch.float64)[:, None] * rates
        first, second = x[..., : dim // 2], x[..., dim // 2 :]
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
        )

    def attention(self, layer, stream):
        path, dim = f"model.layers.{layer}.self_attn", self.sizes["head_dim"]
        x = self.norm(f"model.layers.{layer}.input_layernorm", stream)
        batch, time, _ = x.shape

        def heads(name):
            return self.linear(f"{path}.{name}", x).reshape(batch, time, -1, dim).transpose(1, 2)

        q, k, v = self.rotated(heads("q_proj")), self.rotated(heads("k_proj")), heads("v_proj")
        group = q.shape[1] // k.shape[1]
        rows = []
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // group].transpose(1, 2) / math.sqrt(dim)
            hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
            rows.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, head // group])
        return self.linear(f"{path}.o_proj", torch.cat(rows, dim=-1))

    def mlp_input(self, layer, stream):
        return self.norm(f"model.layers.{layer}.post_attention_layernorm", stream)

    def mlp(self, layer, x):
        path = f"model.layers.{layer}.mlp"
        gate = self.linear(f"{path}.gate_proj", x)
        return self.linear(f"{path}.down_proj", gate / (1 + torch.exp(-gate)) * self.linear(f"{path}.up_proj", x))

    def embedded(self, ids):
        return self.weights["model.embed_tokens.weight"][as_ids(ids)]

    def logits(self, stream):
        return self.linear("lm_head", self.norm("model.norm", stream))


def _next_token_loss(logits, ids):
    ids = as_ids(ids)
    chances = logits[:, :-1].log_softmax(-1)
    return -chances.gather(-1, ids[:, 1:, None]).mean()


def _mask(masks, name):
    """What dropout multiplies with: given, so that both sides drop the same."""
    return masks[name].double() if name in masks else 1.0


class _Streams:
    """MEFT's two streams over a model: which part is F and which is G depends on the variant."""

    def __init__(self, model, tensors, masks, variant):
        self.model, self.tensors, self.masks, self.variant = model, tensors, masks, variant

    def adapter(self, path, x):
        def of(name):
            return self.tensors[f"base_model.model.{path}.{name}"]

        if f"base_model.model.{path}.adapter_norm.weight" in self.tensors:
            centred = x - x.mean(-1, keepdim=True)
            deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
            x = centred / deviation * of("adapter_norm.weight") + of("adapter_norm.bias")
        inner = x @ of("adapter_down.weight").T + of("adapter_down.bias")
        inner = inner / (1 + torch.exp(-inner)) * _mask(self.masks, path)
        return inner @ of("adapter_up.weight").T + of("adapter_up.bias")

    def attention_block(self, layer, x):
        output = self.model.attention(layer, x)
        if self.variant == 3:
            output = output + self.adapter(f"model.layers.{layer}.self_attn", output)
        return x + output

    def mlp_block(self, layer, x):
        given = self.model.mlp_input(layer, x)
        return x + self.model.mlp(layer, given) + self.adapter(f"model.layers.{layer}.mlp", given)

    def layer(self, layer, x):
        return self.mlp_block(layer, self.attention_block(layer, x))

    def alone(self, layer, x):
        return self.adapter(f"model.layers.{layer}", x)

    def parts(self):
        return {
            1: (self.layer, self.alone),
            2: (self.alone, self.layer),
            3: (self.attention_block, self.mlp_block),
        }[self.variant]

    def run(self, states, factor, other, swap=True):
        f, g = self.parts()
        first = second = states
        for layer in range(self.model.sizes["layers"]):
            y1 = factor * first + f(layer, second)
            y2 = other * second + g(layer, y1)
            first, second = (y2, y1) if self.variant < 3 and swap else (y1, y2)
        return first, second


def meft(weights, adapter, ids, sizes, variant, factor, other, output, masks=None, swap=True):
    """Writes the logits, both streams behind the last layer and the gradient of the mean next-token loss of every
    adapter tensor and of the embedding; returns the loss."""
    with torch.enable_grad():
        model = _Model(weights, sizes)
        tensors = {name: value.double().requires_grad_() for name, value in load_file(adapter).items()}
        table = model.weights["model.embed_tokens.weight"].requires_grad_()
        streams = _Streams(model, tensors, load_file(masks) if masks else {}, variant)
        first, second = streams.run(model.embedded(ids), factor, other, swap)
        logits = model.logits((first + second) / 2)
        loss = _next_token_loss(logits, ids)
        loss.backward()
    result = {"logits": logits, "first": first, "second": second, "gradient.embedding": table.grad}
    result |= {"gradient." + name: value.grad for name, value in tensors.items()}
    store(output, result)
    return loss.item()


def plain(weights, ids, sizes, output):
    """Writes the pretrained model's stream behind the last layer, and its logits."""
    model = _Model(weights, sizes)
    states = model.embedded(ids)
    for layer in range(sizes["layers"]):
        states = states + model.attention(layer, states)
        states = states + model.mlp(layer, model.mlp_input(layer, states))
    return store(output, {"stream": states, "logits": model.logits(states)})


def scores(start, sets, losses, rate):
    """IST's scores after one update: a loop over probes and their layers, the chances those before the update."""
    before = [1 / (1 + math.exp(-value)) for value in start]
    rewards = [math.exp(-loss) for loss in losses]
    mean = sum(rewards) / len(rewards)
    result = list(start)
    for damped, reward in zip(sets, rewards):
        for layer in damped:
            result[layer] += rate * (reward - mean) * before[layer] * (1 - before[layer])
    return result


def alternating(folder, adapter, steps, active, lr, weight_decay, clip, output):
    """torch's and peft's own training where only some layers have gradients in each step; returns the losses."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    from support import fresh_model
    from training_oracle import _labels

    losses = []
    with torch.enable_grad():
        model = PeftModel.from_pretrained(fresh_model(folder), adapter, is_trainable=True).eval()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        optimiser = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=weight_decay)
        for rows, layers in zip(steps, active):
            for name, value in trained.items():
                value.requires_grad_(any(f".layers.{layer}." in name for layer in layers))
            ids, labels, mask = _labels(rows)
            loss = model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            present = [value for value in trained.values() if value.grad is not None]
            torch.nn.utils.clip_grad_norm_(present, clip)
            optimiser.step()
            losses.append(loss.item())
    store(output, get_peft_model_state_dict(model))
    return losses
