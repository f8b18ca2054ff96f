"""Adapters as values: ComPEFT and its file, TIES of compressed adapters, and peft's add_weighted_adapter."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from support import as_ids, fresh_model, store


def compeft(tensors, starts, density, alpha, output):
    """The ternary vector of tensors less their starts, in float64: stores "signs", returns scale and deviation."""
    tensors, starts = load_file(tensors), load_file(starts) if starts else {}
    tau = np.concatenate(
        [(tensors[name].astype(np.float64) - starts.get(name, np.float64(0))).ravel() for name in sorted(tensors)]
    )
    sizes = np.abs(tau)
    rank = len(tau) - math.floor(density * len(tau))
    threshold = np.sort(sizes)[rank - 1] if rank else -1
    kept = sizes >= threshold
    deviation = tau.std(ddof=1)
    save_file({"signs": (np.sign(tau) * kept).astype(np.int64)}, output)
    return {"deviation": deviation, "scale": alpha * deviation, "kept": int((kept & (tau != 0)).sum())}


def golomb_bits(kept, count):
    """The card's bits of a kept entry, its sign included, and the entropy of an entry."""
    k = kept / count
    golden = (1 + 5**0.5) / 2
    b = max(0, 1 + math.floor(math.log2(math.log(golden - 1) / math.log(1 - k))))
    entropy = -((1 - k) * math.log2(1 - k) + k * math.log2(k / 2))
    return {"low_bits": b, "per_kept": b + 1 / (1 - (1 - k) ** (2**b)) + 1, "entropy": entropy}


def documented_tensors(document, path, output):
    """Runs the program that the document gives for compressed files, and writes the tensors that it reads (float64)."""
    section = Path(document).read_text().split("\n## Compressed adapters\n")[1].split("\n## ")[0]
    scope = {}
    exec(section.split("```python\n")[1].split("```")[0], scope)
    tensors = scope["changes"](path)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, output)
    return sorted(tensors)


def forged(fields):
    """The bytes of a compressed file with such fields, in hexadecimal; its checksum is right."""
    names = b""
    last = b""
    for name, shape in fields["tensors"]:
        name = name.encode()
        names += struct.pack("<HH", 0, len(name)) + name + bytes([0, len(shape)])
        names += b"".join(struct.pack("<I", size) for size in shape)
    codes = bytes.fromhex(fields["codes"])
    body = b"GRAFTTRI" + struct.pack(
        "<IIQQffdB", fields.get("version", 1), len(fields["tensors"]), fields["count"], fields["kept"],
        fields.get("scale", 1.0), 1.0, 0.5, fields["low_bits"],
    )
    body += names + struct.pack("<Q", len(codes)) + codes
    return (body + struct.pack("<I", zlib.crc32(body))).hex()


def ties(vectors, factor, output):
    """TIES of dense trimmed vectors as its paper has it: zero sums take the sign of most sums; the agreeing mean."""
    stacked = np.stack([value.astype(np.float64) for _, value in sorted(load_file(vectors).items())])
    signs = np.sign(stacked.sum(0))
    signs[signs == 0] = np.sign(signs.sum())
    agrees = (np.sign(stacked) == signs) & (stacked != 0)
    merged = (stacked * agrees).sum(0) / np.maximum(agrees.sum(0), 1) * factor
    save_file({"merged": merged}, output)
    return int((agrees.sum(0) > 0).sum())


def weighted(model_folder, adapters, weights, settings, ids, output, masks=None):
    """peft's own combination: writes "logits" and the effective update of each layer.

    `masks` names a file of the masks that random pruning draws, by "<layer>/<A, B or delta>/<adapter>".
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"a{index}" for index in range(len(adapters))]
    model = PeftModel.from_pretrained(fresh_model(model_folder), adapters[0], adapter_name=names[0]).eval()
    for name, folder in zip(names[1:], adapters[1:]):
        model.load_adapter(folder, name)
    layers = {
        path: module for path, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)
    }
    if masks:
        _replay(load_file(masks), layers, len(adapters), settings["combination_type"])
    try:
        model.add_weighted_adapter(names, weights, "sum", **settings)
    finally:
        torch.bernoulli = _bernoulli
    model.set_adapter("sum")
    result = {path: module.get_delta_weight("sum") for path, module in layers.items() if "sum" in module.lora_A}
    store(output, {**result, "logits": model(input_ids=as_ids(ids), use_cache=False).logits})
    return sorted(result)


_bernoulli = torch.bernoulli


def _replay(masks, layers, count, rule):
    """Lets random pruning draw given masks, in the order in which peft goes through layers and tensors."""
    tensors = ["delta"] if rule.endswith("_svd") else ["lora_A", "lora_B"]
    names = [f"{path}/{tensor}/{index}" for path in layers for tensor in tensors for index in range(count)]
    queue = [masks[name] for name in names if name in masks]
    queue.reverse()
    torch.bernoulli = lambda *_, **__: torch.from_numpy(queue.pop().astype(np.float32))
