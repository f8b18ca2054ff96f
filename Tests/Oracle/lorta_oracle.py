"""LoRTA written out as its definition: the five-way tensor by explicit sums in float64, nothing factored."""

import torch
from safetensors.torch import load_file

from support import store

_NAMES = ["A", "B", "C_H", "C_L", "C_M"]


def _factors(path):
    tensors = load_file(path)
    return [tensors[f"base_model.lorta_{name}"].double() for name in _NAMES]


def updates(factors, output, scale, orientation, kv_heads):
    """Writes dW for every block and matrix as "block.matrix", matrices counted q, k, v, o.

    Every element is the sum over components of five numbers; where they go in the weight is said index by index.
    """
    a, b, heads, layers, matrices = _factors(factors)
    (d, rank), dim = a.shape, b.shape[1]
    tensors = {}
    for layer in range(layers.shape[0]):
        for matrix in range(4):
            count = kv_heads if matrix in (1, 2) else heads.shape[0]
            group = heads.shape[0] // count
            wide_output = orientation == "lit" or (orientation == "natural" and matrix != 3)
            weight = torch.zeros((count * dim, d) if wide_output else (d, count * dim), dtype=torch.float64)
            for head in range(count):
                for j in range(dim):
                    value = torch.zeros(d, dtype=torch.float64)
                    for k in range(rank):
                        coefficient = heads[head * group, k] * layers[layer, k] * matrices[matrix, k]
                        value += a[:, k] * b[k, j] * coefficient
                    if wide_output:
                        weight[head * dim + j, :] = scale * value
                    else:
                        weight[:, head * dim + j] = scale * value
            tensors[f"{layer}.{matrix}"] = weight
    return store(output, tensors)


def preconditioners(factors, output, epsilon):
    """Writes the preconditioner of each factor in the form of sums over all heads, blocks and matrices."""
    a, b, heads, layers, matrices = _factors(factors)
    rank = a.shape[1]
    total = {name: torch.zeros(rank, rank, dtype=torch.float64) for name in ("A", "B")}
    for h in heads:
        for layer in layers:
            for m in matrices:
                diagonal = torch.diag(h * layer * m)
                total["A"] += diagonal @ b @ b.T @ diagonal
                total["B"] += diagonal @ a.T @ a @ diagonal
    for name, first, second in (("C_H", layers, matrices), ("C_L", heads, matrices), ("C_M", heads, layers)):
        total[name] = torch.zeros(rank, rank, dtype=torch.float64)
        for one in first:
            for other in second:
                diagonal = torch.diag(one * other)
                total[name] += (a.T @ a) * (diagonal @ b @ b.T @ diagonal)
    identity = torch.eye(rank, dtype=torch.float64)
    return store(output, {name: torch.linalg.inv(total[name] + epsilon * identity) for name in _NAMES})
