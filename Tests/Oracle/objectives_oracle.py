"""Objectives as their papers state them, in fp64 and one sequence at a time: loss and gradients of whole steps."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from support import fresh_model, store

_PREFIX = "base_model.model."


class _Dense:
    """A model in fp64 whose adapted weights are `W + scale * B A`, formed densely, with leaves A, B and trained copies."""

    def __init__(self, folder, adapter):
        self.model = fresh_model(folder).double()
        config = json.loads(Path(adapter, "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
        tensors = load_file(str(Path(adapter, "adapter_model.safetensors")))
        self.leaves = {name: value.double().requires_grad_() for name, value in tensors.items()}
        self.frozen = {name: value.detach() for name, value in self.model.named_parameters()}
        self.score = None
        self.weights = {}
        for name, value in self.leaves.items():
            path = name.removeprefix(_PREFIX)
            if path == "score.weight":
                self.score = value
            elif path.endswith(".lora_A.weight"):
                module = path.removesuffix(".lora_A.weight")
                up = self.leaves[_PREFIX + module + ".lora_B.weight"]
                self.weights[module + ".weight"] = self.frozen[module + ".weight"] + scale * up @ value
            elif not path.endswith(".lora_B.weight"):
                self.weights[path] = value

    def run(self, ids, adapted=True):
        """Final hidden states, logits and the outputs of every activation function for one sequence."""
        activations = []
        hooks = [
            module.register_forward_hook(lambda _, __, output: activations.append(output[0]))
            for path, module in self.model.named_modules()
            if path.endswith("act_fn")
        ]
        weights = {**self.frozen, **(self.weights if adapted else {})}
        output = torch.func.functional_call(
            self.model, weights, kwargs={"input_ids": torch.tensor([ids]), "use_cache": False, "output_hidden_states": True}
        )
        for hook in hooks:
            hook.remove()
        return output.hidden_states[-1][0], output.logits[0], activations


def _log_probability(logits, ids, supervised):
    """A loop over tokens: the logits of a position predict the token behind it."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for place in range(1, len(ids)):
        if supervised[place]:
            total = total + torch.log_softmax(logits[place - 1], -1)[ids[place]]
            count += 1
    return total, count


def _preference(h, kind, beta, smoothing):
    s = torch.nn.functional.logsigmoid
    if kind == "sigmoid":
        return -(1 - smoothing) * s(beta * h) - smoothing * s(-beta * h)
    if kind == "robust":
        return (-(1 - smoothing) * s(beta * h) + smoothing * s(-beta * h)) / (1 - 2 * smoothing)
    if kind == "hinge":
        return torch.clamp(1 - beta * h, min=0)
    return (h - 1 / (2 * beta)) ** 2


def _singular(matrix, k):
    values = torch.linalg.svdvals(matrix)
    return -values[:k].sum() / (values.sum() + 1e-10)


def step(folder, adapter, rows, objective, settings, output, score=None):
    """Loss and gradients of a step. A row is {"sequences": [[ids, supervised], ...], "label"}.

    `score` is a file with the head that the pretrained classifier begins with.
    """
    get = settings.get
    with torch.enable_grad():
        dense = _Dense(folder, adapter)
        first = load_file(score)["score.weight"].double() if score else None
        total, measures = torch.zeros((), dtype=torch.float64), {}
        tokens = sum(sum(s[1:]) for row in rows for _, s in row["sequences"])
        chosen_tokens = sum(sum(row["sequences"][0][1][1:]) for row in rows)
        sequences = sum(len(row["sequences"]) for row in rows)
        density, counted, tuned_classes, fixed_classes = [], [], [], []
        rewards = []
        for row in rows:
            results = []
            for ids, supervised in row["sequences"]:
                states, logits, activations = dense.run(ids)
                with torch.no_grad():
                    fixed_states, fixed, _ = dense.run(ids, adapted=False)
                results.append((_log_probability(logits, ids, supervised), _log_probability(fixed, ids, supervised)[0]))
                eps = get("density_eps", 1e-7)
                density.append(torch.stack([(a**2 / (a**2 + eps)).mean() for a in activations]).mean())
                counted.append(np.mean([(a != 0).double().mean().item() for a in activations]))
                if objective == "sft":
                    places = [p - 1 for p in range(1, len(ids)) if supervised[p]]
                    z, zp = logits[places], fixed[places]
                    p, q = torch.softmax(zp, -1), torch.softmax(z, -1)
                    total = total + get("consistency_weight", 0) * (p * (p.log() - q.log())).sum() / tokens
                    total = total + get("diversity_weight", 0) * (q * q.log()).sum() / tokens
                    if get("svd_weight", 0):
                        total = total + get("svd_weight", 0) * _singular(z, get("svd_k", 3)) / sequences
            if objective == "sft":
                total = total - results[0][0][0] / tokens
            elif objective == "dpo":
                ((lw, nw), rw), ((ll, nl), rl) = results
                rewards.append([float(get("beta", 0.1) * (lw - rw)), float(get("beta", 0.1) * (ll - rl))])
                kind = get("loss_type", "sigmoid")
                h = (lw - rw) / nw - (ll - rl) / nl if kind == "ipo" else (lw - rw) - (ll - rl)
                loss = _preference(h, kind, get("beta", 0.1), get("label_smoothing", 0))
                total = total + loss / len(rows) - get("rpo_alpha", 0) * lw / chosen_tokens
            else:
                z = dense.score @ states[-1]
                tuned_classes.append(z)
                fixed_classes.append(first @ fixed_states[-1] if first is not None else z.detach())
                total = total - torch.log_softmax(z, -1)[row["label"]] / len(rows)
        total = total + get("density_weight", 0) * torch.stack(density).sum() / sequences
        if objective == "classification":
            z, zp = torch.stack(tuned_classes), torch.stack(fixed_classes)
            d = z / z.norm(dim=1, keepdim=True) - zp / zp.norm(dim=1, keepdim=True)
            total = total + get("consistency_weight", 0) * (d**2).mean()
            if get("diversity_weight", 0):
                spread = 0
                c = sum(torch.outer(r - z.mean(0), r - z.mean(0)) for r in z) / (len(z) - 1)
                for i in range(z.shape[1]):
                    for j in range(z.shape[1]):
                        if i != j:
                            spread = spread + c[i, j] ** 2
                total = total + get("diversity_weight", 0) * spread / z.shape[1]
            if get("svd_weight", 0):
                total = total + get("svd_weight", 0) * _singular(z, get("svd_k", 3))
        total.backward()
    store(output, {name: leaf.grad for name, leaf in dense.leaves.items()})
    return {
        "loss": total.item(), "rewards": rewards, "density": float(torch.stack(density).mean()),
        "nonzero": float(np.mean(counted)),
    }


def _classifier(folder, labels):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, dtype=torch.float32).eval()
    model.config.pad_token_id = 2
    return model


def make_adapter(folder, labels, output, seed):
    """A random SEQ_CLS adapter as peft writes it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=6, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(_classifier(folder, labels), config)
    model.save_pretrained(output)


def classify(folder, labels, adapter, rows, output):
    """Logits of padded rows by peft and AutoModelForSequenceClassification, and how keys agree."""
    import warnings

    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(_classifier(folder, labels), adapter).eval()
    expected = set(get_peft_model_state_dict(model))
    found = set(load_file(str(Path(adapter, "adapter_model.safetensors"))))
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [2] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    store(output, {"logits": logits})
    return {
        "missing": sorted(expected - found), "unexpected": sorted(found - expected),
        "task_type": model.peft_config["default"].task_type, "type": type(model).__name__,
        "warnings": [str(note.message) for note in noted if "adapter" in str(note.message).lower()],
    }


def report(answers, labels):
    """Measures of a classifier from its confusion matrix; Matthews as the correlation of one-hot matrices."""
    answers, labels = np.array(answers), np.array(labels)
    classes = sorted(set(answers) | set(labels))
    scores = {}
    for c in classes:
        tp = int(((answers == c) & (labels == c)).sum())
        fp = int(((answers == c) & (labels != c)).sum())
        fn = int(((answers != c) & (labels == c)).sum())
        precision = tp / (tp + fp) if tp + fp else 0.0
        recall = tp / (tp + fn) if tp + fn else 0.0
        scores[c] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    a = np.stack([(answers == c) for c in classes], 1).astype(float)
    b = np.stack([(labels == c) for c in classes], 1).astype(float)
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return {
        "accuracy": float((answers == labels).mean()), "f1_macro": float(np.mean(list(scores.values()))),
        "f1_binary": scores.get(1, 0.0) if set(classes) <= {0, 1} else None,
        "matthews": float((a * b).sum() / spread) if spread else 0.0,
    }
