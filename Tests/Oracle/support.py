"""What the oracles share: token ids in, tensors out, loaded models kept for the next request."""

import os
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".graft" / "oracle-cache"

torch.set_grad_enabled(False)


def as_ids(ids):
    """Token ids as int64 [batch, time], from nested lists or from the tensor "ids" of a safetensors file."""
    tensor = load_file(ids)["ids"].long() if isinstance(ids, str) else torch.tensor(ids, dtype=torch.long)
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor


def store(path, tensors):
    """Writes the tensors to a safetensors file and returns their names and shapes."""
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, path)
    return {name: list(value.shape) for name, value in tensors.items()}


_models = OrderedDict()


def stamp(folder):
    """Changes whenever a file of the folder does."""
    return tuple(sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in os.scandir(folder)))


def fresh_model(folder, dtype="float32", attention="eager"):
    """The causal language model in a folder, in evaluation mode; the caller may change it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()


def load_model(folder, dtype="float32", attention="eager"):
    """As `fresh_model`, but shared with the requests to come while it is among the last two asked for."""
    key = (str(folder), stamp(folder), dtype, attention)
    if key in _models:
        _models.move_to_end(key)
        return _models[key]
    model = fresh_model(folder, dtype, attention)
    # Dynamic rope scaling remembers the longest sequence that it has seen: such a model answers one request only.
    if getattr(model.config, "rope_parameters", {}).get("rope_type") not in ("dynamic", "longrope"):
        _models[key] = model
        while len(_models) > 2:
            _models.popitem(last=False)
    return model


def randomise(parameters, seed, tied=False):
    """Overwrites each (name, parameter) with seeded values of a size at which every part of a model matters.

    Matrices keep the scale of their input, so that activations stay near 1; norms lie around 1 and biases around 0.
    A tied embedding is small: a large one would make every model answer with the token it has just read.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if parameter.dim() > 1:
            value = noise if "embed_tokens" in name and not tied else noise * parameter.shape[-1] ** -0.5
        elif name.endswith("bias"):
            value = 0.3 * noise
        else:
            value = 1 + 0.2 * noise
        parameter.data.copy_(value)
