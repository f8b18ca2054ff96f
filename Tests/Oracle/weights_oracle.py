"""Weight maps written out as their definitions in float64: dense updates element by element, gradients by autograd.

Also adapters of the types that peft has for them.
"""

import itertools

import torch
from safetensors.torch import load_file

from support import as_ids, fresh_model, randomise, store


def _melora(tensors, path, weight, settings):
    a, b = tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]
    n = settings["l_num"]
    rank, (outputs, inputs) = b.shape[1], (size // n for size in weight.shape)
    update = torch.zeros_like(weight)
    for i in range(n):
        mini = b[i * outputs : (i + 1) * outputs] @ a[i * rank : (i + 1) * rank]
        update[i * outputs : (i + 1) * outputs, i * inputs : (i + 1) * inputs] = settings["lora_alpha"] / rank * mini
    return update


def _miss(tensors, path, weight, settings):
    block = tensors[f"{path}.miss_block"]
    rows = []
    if block.dim() == 3:
        r = block.shape[1]
        for a in range(block.shape[0]):
            pieces = []
            for c in range(weight.shape[1] // r):
                own = weight[a * r : (a + 1) * r, c * r : (c + 1) * r]
                pieces.append(own @ block[a] + block[a])
            rows.append(torch.cat(pieces, dim=1))
        return torch.cat(rows)
    for o in range(weight.shape[0]):
        rows.append(torch.stack([block[i % block.shape[0], o % block.shape[1]] for i in range(weight.shape[1])]))
    return torch.stack(rows)


def _train(cores, rows, columns):
    """The matrix of a tensor train, entry by entry."""
    entries = []
    for index in itertools.product(*(range(core.shape[1]) for core in cores)):
        product = torch.ones(1, 1, dtype=torch.float64)
        for core, i in zip(cores, index):
            product = product @ core[:, i, :]
        entries.append(product[0, 0])
    return torch.stack(entries).reshape(rows, columns)


def _loretta(tensors, path, weight, settings):
    def cores(name):
        count = sum(1 for key in tensors if key.startswith(f"{path}.{name}."))
        return [tensors[f"{path}.{name}.{k}"] for k in range(count)]

    r = settings["r"]
    a = _train(cores("loretta_A"), weight.shape[1], r)
    b = _train(cores("loretta_B"), r, weight.shape[0])
    return settings["lora_alpha"] / r * (a @ b).T


def _adalora(tensors, path, weight, settings):
    a, b, e = (tensors[f"{path}.lora_{name}"] for name in "ABE")
    update = torch.zeros_like(weight)
    for k in range(a.shape[0]):
        update = update + torch.outer(b[:, k], a[k]) * e[k, 0]
    return settings["lora_alpha"] / (settings["init_r"] + 1e-5) * update


_UPDATES = {"MELORA": _melora, "MISS": _miss, "LORETTA_REP": _loretta, "ADALORA": _adalora}


def evaluate(tensors, output, peft_type, settings, paths):
    """The adapted layers of `paths` alone, each for its own rows.

    The file `tensors` has for each path `<path>/weight`, `/bias`, `/x` and `/g`, and the adapter's tensors by their
    keys. Written are `<path>/update`, `/y`, `/x` (the gradient of the sum of y * g), and by the keys the gradients of
    the tensors that have one.
    """
    given = {name: value.double() for name, value in load_file(tensors).items()}
    prefix = "base_model.model."
    own = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    result = {}
    with torch.enable_grad():
        total = torch.zeros((), dtype=torch.float64)
        for value in own.values():
            value.requires_grad_()
        inputs = {}
        for path in paths:
            weight, bias, g = (given[f"{path}/{name}"] for name in ("weight", "bias", "g"))
            inputs[path] = given[f"{path}/x"].requires_grad_()
            update = _UPDATES[peft_type](own, path, weight, settings)
            y = inputs[path] @ (weight + update).T + bias
            result |= {f"{path}/update": update, f"{path}/y": y}
            total = total + (y * g).sum()
        total.backward()
    result |= {f"{path}/x": value.grad for path, value in inputs.items()}
    result |= {prefix + name: value.grad for name, value in own.items() if value.grad is not None}
    return store(output, result)


def make_adapter(model_folder, folder, seed, peft_type, config):
    """Saves an adapter of a type of peft's with random values; returns the number of trainable ones."""
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    configuration = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](**{"task_type": "CAUSAL_LM", **config})
    model = get_peft_model(fresh_model(model_folder), configuration).eval()
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    adapters = [(name, value) for name, value in trainable if "miss_" in name or "lora_" in name]
    randomise(adapters, seed)
    for _, value in adapters:
        value.data *= 0.3
    for name, value in trainable:
        if name not in dict(adapters):
            value.data *= 1.1
    model.save_pretrained(folder)
    return sum(value.numel() for _, value in trainable)


def logits(model_folder, adapter_folder, ids, output, merged=False):
    """Writes "logits" of the model with the adapter; returns the keys on which the file and peft's model differ."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder).eval()
    expected = get_peft_model_state_dict(model)
    found = load_file(f"{adapter_folder}/adapter_model.safetensors")
    if merged:
        model = model.merge_and_unload()
    store(output, {"logits": model(input_ids=as_ids(ids), use_cache=False).logits})
    return {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "differing": sorted(
            name
            for name in set(found) & set(expected)
            if found[name].shape != expected[name].shape or not torch.equal(found[name], expected[name].float())
        ),
    }


def adalora_scores(history, output, steps, beta1, beta2):
    """Writes the scores of a layer's directions after each step, value by value.

    `history` has A, B and E as they were after each step, `<step>/A`, and the gradients that were used, `<step>/A.grad`.
    """
    tensors = {name: value.double() for name, value in load_file(history).items()}
    mean, spread, result = {}, {}, {}
    for step in range(steps):
        products = {}
        for name in "ABE":
            value, gradient = tensors[f"{step}/{name}"], tensors[f"{step}/{name}.grad"]
            score = torch.zeros_like(value)
            for i in range(value.shape[0]):
                for j in range(value.shape[1]):
                    key = (name, i, j)
                    now = abs(value[i, j] * gradient[i, j])
                    mean[key] = beta1 * mean.get(key, 0.0) + (1 - beta1) * now
                    spread[key] = beta2 * spread.get(key, 0.0) + (1 - beta2) * abs(now - mean[key])
                    score[i, j] = mean[key] * spread[key]
            products[name] = score
        rank = tensors[f"{step}/E"].shape[0]
        result[str(step)] = torch.stack(
            [products["E"][k, 0] + products["A"][k].mean() + products["B"][:, k].mean() for k in range(rank)]
        )
    return store(output, result)


def train_adalora(model_folder, adapter_folder, folder, ids, steps, lr):
    """Trains an adapter with plain gradient descent and peft's own allocator, and saves it; returns peft's pattern."""
    from peft import PeftModel

    with torch.enable_grad():
        model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder, is_trainable=True).eval()
        optimiser = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=lr)
        tokens, losses = as_ids(ids), []
        for step in range(1, steps + 1):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            optimiser.step()
            model.base_model.update_and_allocate(step)
            optimiser.zero_grad()
            losses.append(loss.item())
    model.save_pretrained(folder)
    return losses
