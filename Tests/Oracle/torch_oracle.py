"""What torch, numpy and hashlib compute, for the tests of the tensor layer.

A tensor travels as {"dtype": "float32", "shape": [2, 3], "values": [...]}, its values as numbers in row-major order.
An expression is Python over `torch`, `F` (torch.nn.functional) and the tensors by their names.
"""

import hashlib

import numpy
import torch
import torch.nn.functional as F


def _tensor(value):
    dtype = getattr(torch, value["dtype"])
    wide = torch.float64 if dtype.is_floating_point else torch.int64
    return torch.tensor(value["values"], dtype=wide).reshape(value["shape"]).to(dtype)


def _json(tensor):
    tensor = tensor.detach()
    wide = torch.float64 if tensor.dtype.is_floating_point else torch.int64
    values = tensor.to(wide).contiguous().flatten().tolist()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "values": values}


def _evaluate(expression, tensors):
    result = eval(expression, {"torch": torch, "F": F}, tensors)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def evaluate(expression, tensors):
    """The tensors that an expression gives."""
    return [_json(value) for value in _evaluate(expression, {name: _tensor(value) for name, value in tensors.items()})]


def assign(statement, tensors, name):
    """One of the tensors after a statement that changes it."""
    names = {key: _tensor(value) for key, value in tensors.items()}
    exec(statement, {"torch": torch}, names)
    return _json(names[name])


def gradients(expression, tensors, wanted):
    """The gradients of the sum of the cosines of all results with respect to the wanted tensors."""
    with torch.enable_grad():
        names = {key: _tensor(value) for key, value in tensors.items()}
        leaves = [names[key].requires_grad_() for key in wanted]
        loss = sum(value.cos().sum() for value in _evaluate(expression, names))
        return [_json(grad) for grad in torch.autograd.grad(loss, leaves)]


def dtypes(names):
    """Bytes of an element and whether it is real, for each dtype by its name."""
    kinds = {name: getattr(torch, name) for name in names}
    return {name: {"bytes": kind.itemsize, "real": kind.is_floating_point} for name, kind in kinds.items()}


def encode(values, dtype):
    """The bytes of real numbers converted to a dtype."""
    tensor = torch.tensor(values, dtype=torch.float64).to(torch.float32).to(getattr(torch, dtype))
    return tensor.view(torch.uint8).flatten().tolist()


def philox_key(seed, name):
    """The key of a named stream: the first two little-endian words of a hash."""
    digest = hashlib.sha256(b"graft\0" + int(seed).to_bytes(8, "little") + name.encode()).digest()
    return [str(int.from_bytes(digest[start : start + 8], "little")) for start in (0, 8)]


def philox_words(key, count):
    """The first words of numpy's Philox with a key, as decimal strings."""
    generator = numpy.random.Philox(key=numpy.array([int(word) for word in key], dtype=numpy.uint64))
    return [str(word) for word in generator.random_raw(count)]
