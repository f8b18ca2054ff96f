"""Quantised weights by their published definitions, in numpy: NF4 with quantised scales, and 8-bit rows."""

from fractions import Fraction
from statistics import NormalDist

import numpy
import torch
from safetensors.numpy import load_file, save_file

BLOCK, SCALE_BLOCK = 64, 256
F32 = numpy.float32


def nf4_levels():
    """The 16 levels from quantiles of the normal distribution, eight above zero and seven below."""
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in numpy.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in numpy.linspace(offset, 0.5, 8)[:-1]]
    levels = numpy.array(sorted(above + [0.0] + below))
    return (levels / levels.max()).tolist()


def dynamic_map():
    """The 256 values of the signed dynamic map, from exact fractions."""
    values = [Fraction(0), Fraction(1)]
    for e in range(7):
        ends = [Fraction(1, 10) + Fraction(9, 10) * i / 2**e for i in range(2**e + 1)]
        means = [(a + b) / 2 / 10 ** (6 - e) for a, b in zip(ends, ends[1:])]
        values += means + [-mean for mean in means]
    return sorted(float(F32(float(value))) for value in values)


def dynamic_map_in_torch():
    """The same as bitsandbytes builds it: in fp32, whose last bit depends on the machine's vectors."""
    values = [0.0, 1.0]
    for e in range(7):
        ends = torch.linspace(0.1, 1, 2**e + 1)
        means = 10 ** (e - 6) * ((ends[:-1] + ends[1:]) / 2.0)
        values += means.tolist() + (-means).tolist()
    return sorted(values)


def _blocks(flat, size):
    padded = numpy.zeros((len(flat) + size - 1) // size * size, dtype=F32)
    padded[: len(flat)] = flat
    return padded.reshape(-1, size)


def _quantise(flat, values, size):
    """Numbers of the nearest values (ties down) and the largest size of each block."""
    blocks = _blocks(flat, size)
    largest = numpy.abs(blocks).max(axis=1)
    scaled = blocks / numpy.maximum(largest, F32(1e-38))[:, None]
    middle = (values[:-1] + values[1:]) / F32(2)
    return numpy.searchsorted(middle, scaled, side="left").reshape(-1)[: len(flat)], largest


def nf4(path, output, levels):
    """Codes, scales and values of the matrix "w"; `levels` are the published constants in fp32."""
    matrix = load_file(path)["w"]
    flat, levels, spread = matrix.reshape(-1), numpy.array(levels, dtype=F32), numpy.array(dynamic_map(), dtype=F32)
    numbers, scales = _quantise(flat, levels, BLOCK)
    pairs = numpy.append(numbers, [0] * (len(numbers) % 2)).astype(numpy.uint8).reshape(-1, 2)
    mean = F32(scales.astype(numpy.float64).mean())
    codes, outer = _quantise(scales - mean, spread, SCALE_BLOCK)
    again = spread[codes] * numpy.repeat(outer, SCALE_BLOCK)[: len(codes)] + mean
    save_file(
        {
            "codes": pairs[:, 0] << 4 | pairs[:, 1],
            "scales": scales,
            "scale_codes": codes.astype(numpy.uint8),
            "scale_scales": outer,
            "offset": numpy.array([mean]),
            "plain": (levels[numbers] * numpy.repeat(scales, BLOCK)[: len(flat)]).reshape(matrix.shape),
            "double": (levels[numbers] * numpy.repeat(again, BLOCK)[: len(flat)]).reshape(matrix.shape),
        },
        output,
    )


def int8(path, output):
    """Codes, scales and values of the matrix "w" as rows of 8-bit integers."""
    matrix = load_file(path)["w"]
    scales = numpy.abs(matrix).max(axis=1)
    factor = numpy.divide(F32(127), scales, out=numpy.zeros_like(scales), where=scales > 0)
    codes = numpy.rint(matrix * factor[:, None]).astype(numpy.int8)
    values = codes.astype(F32) * scales[:, None] * F32(7.874015718698502e-3)
    save_file({"codes": codes, "scales": scales, "values": values}, output)
