"""HUT written out as its index formulas in float64: weights entry by entry, gradients by autograd."""

import torch
from safetensors.torch import load_file

from support import store


def _weight(a, b, weight, settings):
    """The changed weight, `[out, in]`, from `a [in, r]` and `b [r, out]`."""
    r, form = settings["r"], settings["form"]
    outputs, inputs = weight.shape
    rows = []
    for o in range(outputs):
        row = []
        for i in range(inputs):
            if form == "blocks":
                factor = a[i, o * r // outputs] * b[i * r // inputs, o]
            elif form == "power":
                factor = torch.ones((), dtype=torch.float64)
                for _ in range(r):
                    factor = factor * a[i, 0] * b[0, o]
            else:
                factor = 1 + settings["scale"] * sum(a[i, k] * b[k, o] for k in range(r))
            row.append(weight[o, i] * factor)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def evaluate(tensors, output, peft_type, settings, paths):
    """The adapted layers of `paths` alone, each for its own rows; files are those of `weights.evaluate`."""
    assert peft_type == "HUT"
    given = {name: value.double() for name, value in load_file(tensors).items()}
    own = {name: value.requires_grad_() for name, value in given.items() if name.startswith("base_model.model.")}
    result = {}
    with torch.enable_grad():
        total = torch.zeros((), dtype=torch.float64)
        inputs = {}
        for path in paths:
            weight, bias, g = (given[f"{path}/{name}"] for name in ("weight", "bias", "g"))
            inputs[path] = given[f"{path}/x"].requires_grad_()
            a, b = (own[f"base_model.model.{path}.hut_{name}"] for name in "AB")
            changed = _weight(a, b, weight, settings)
            y = inputs[path] @ changed.T + bias
            if settings["scale_shift"]:
                gamma, beta = (own[f"base_model.model.{path}.hut_{name}"] for name in ("gamma", "beta"))
                changed, y = gamma[:, None] * changed, y * gamma + beta
            result |= {f"{path}/update": changed - weight, f"{path}/y": y}
            total = total + (y * g).sum()
        total.backward()
    result |= {f"{path}/x": value.grad for path, value in inputs.items()}
    result |= {name: value.grad for name, value in own.items()}
    return store(output, result)
