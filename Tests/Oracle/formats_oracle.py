"""Reference answers for the tests of the Formats layer, computed by Python's json, safetensors and gguf.

Every operation reads the file `source` and writes the file `target`; what they hold is said at each."""

import json
import struct

import numpy as np


def json_dumps(source, target):
    """JSON array of texts -> JSON array of [indented sorted, one line, not ASCII] texts."""
    result = []
    for text in json.load(open(source, encoding="utf-8")):
        value = json.loads(text)
        result.append([
            json.dumps(value, indent=2, sort_keys=True),
            json.dumps(value),
            json.dumps(value, indent=4, ensure_ascii=False),
        ])
    json.dump(result, open(target, "w", encoding="utf-8"))


def json_accepts(source, target):
    """JSON array of texts -> JSON array of Booleans: does Python read it?"""
    result = []
    for text in json.load(open(source, encoding="utf-8")):
        try:
            json.loads(text)
            result.append(True)
        except ValueError:
            result.append(False)
    json.dump(result, open(target, "w"))


def float_repr(source, target):
    """Raw doubles -> their reprs, one a line."""
    values = np.fromfile(source, dtype="<f8")
    open(target, "w").write("\n".join(repr(float(v)) for v in values))


def float_parse(source, target):
    """Decimal texts, one a line -> raw doubles."""
    values = [float(line) for line in open(source).read().split("\n")]
    np.array(values, dtype="<f8").tofile(target)


def safetensors_write(source, target, metadata):
    """JSON array of [name, torch dtype, shape, hexadecimal bytes] -> safetensors file."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, dtype, shape, data in json.load(open(source, encoding="utf-8")):
        raw = torch.frombuffer(bytearray(bytes.fromhex(data)) or bytearray(1), dtype=torch.uint8)
        if not data:
            tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
        else:
            tensors[name] = raw.view(getattr(torch, dtype)).reshape(shape)
    save_file(tensors, target, metadata=metadata)


def safetensors_read(source, target):
    """safetensors file -> JSON object of [torch dtype, shape, hexadecimal bytes] by name, and its metadata."""
    import torch
    from safetensors import safe_open

    result = {}
    with safe_open(source, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            raw = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.zeros(0)
            result[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), bytes(raw.tolist()).hex()]
        json.dump({"metadata": file.metadata(), "tensors": result}, open(target, "w"))


def safetensors_accepts(source, target):
    """Lengths (u32) and bytes of files, one after the other -> JSON array: does the package read all tensors?"""
    from safetensors.torch import load

    data = open(source, "rb").read()
    result = []
    position = 0
    while position < len(data):
        size = struct.unpack_from("<I", data, position)[0]
        try:
            load(data[position + 4 : position + 4 + size])
            result.append(True)
        except Exception:
            result.append(False)
        position += 4 + size
    json.dump(result, open(target, "w"))


def gguf_dequantise(source, target, code):
    """Raw blocks of the type `code` -> raw fp32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        blocks = np.fromfile(source, dtype=np.uint8)
        dequantize(blocks, GGMLQuantizationType(int(code))).astype("<f4").tofile(target)


def bf16_round(source, target):
    """Raw fp32 -> raw bf16, rounded by torch."""
    import torch

    values = torch.from_numpy(np.fromfile(source, dtype="<f4"))
    values.to(torch.bfloat16).view(torch.int16).numpy().tofile(target)


def gguf_sizes(source, target):
    """Nothing -> JSON object of [name, elements, bytes] a block by type code."""
    from gguf import GGML_QUANT_SIZES

    json.dump({int(k): [k.name, *v] for k, v in GGML_QUANT_SIZES.items()}, open(target, "w"))


def gguf_write(source, target):
    """JSON {"keys": [[key, kind, value]], "tensors": [[name, type code, shape, hexadecimal fp32]]} -> GGUF file."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    plan = json.load(open(source, encoding="utf-8"))
    writer = GGUFWriter(target, "llama")
    for key, kind, value in plan["keys"]:
        getattr(writer, "add_" + kind)(key, value)
    for name, code, shape, data in plan["tensors"]:
        values = np.frombuffer(bytes.fromhex(data), dtype="<f4").reshape(shape)
        kind = GGMLQuantizationType(code)
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_summary(source, target):
    """GGUF file -> JSON: keys with their values, tensors with type, shape and offset, as gguf-py reads them."""
    from gguf import GGUFReader

    def plain(value):
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value.item() if hasattr(value, "item") else value

    reader = GGUFReader(source)
    keys = {k: plain(f.contents()) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = {
        t.name: [int(t.tensor_type), [int(n) for n in reversed(t.shape)], int(t.data_offset), int(t.n_bytes)]
        for t in reader.tensors
    }
    json.dump({"keys": keys, "tensors": tensors}, open(target, "w"))


def gguf_rows(source, target, name, count):
    """GGUF file -> raw fp32 of the first rows of a tensor."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensor = next(t for t in GGUFReader(source).tensors if t.name == name)
    dequantize(tensor.data[: int(count)], tensor.tensor_type).astype("<f4").tofile(target)


def unpermuted(source, target, rows, columns, heads):
    """Raw fp32 in GGUF's row order -> in Hugging Face's."""
    rows, columns, heads = int(rows), int(columns), int(heads)
    stored = np.fromfile(source, dtype="<f4").reshape(heads, rows // heads // 2, 2, columns)
    stored.swapaxes(1, 2).reshape(rows, columns).astype("<f4").tofile(target)
