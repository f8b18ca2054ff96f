"""Adapters as peft makes and reads them: random LoRA, rsLoRA and DoRA folders, and what a model answers with one."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from support import as_ids, fresh_model, randomise, store

_WEIGHTS = "adapter_model.safetensors"


def _configuration(config):
    """A LoraConfig from its fields; the model is a causal language model unless they say otherwise."""
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", **config})


def _wrap(model_folder, config):
    from peft import get_peft_model

    return get_peft_model(fresh_model(model_folder), _configuration(config)).eval()


def _adapted(model):
    """Paths of the adapted modules in the base model, and of the modules that are trained whole."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    def paths(kind):
        return sorted(path for path, module in model.get_base_model().named_modules() if isinstance(module, kind))

    return {"adapted": paths(BaseTunerLayer), "saved_whole": paths(ModulesToSaveWrapper)}


def _details(model):
    """Rank and scale of each adapted module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    name = model.active_adapter
    return {
        path: {"r": module.r[name], "scaling": float(module.scaling[name])}
        for path, module in model.get_base_model().named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def selected(model_folder, config):
    """What a configuration selects in a model, without making weights: paths, ranks and scales."""
    model = _wrap(model_folder, config)
    return {**_adapted(model), "details": _details(model), "trainable": model.get_nb_trainable_parameters()[0]}


def make_adapter(model_folder, folder, seed, config):
    """Saves an adapter with random weights, none of them zero, and returns what it selects and its tensors."""
    model = _wrap(model_folder, config)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    before = {name: parameter.detach().clone() for name, parameter in trainable}
    randomise(trainable, seed)
    for name, parameter in trainable:
        if "lora_B" in name or "lora_embedding_B" in name:
            # A change of the size of the weights or less: a larger one amplifies rounding errors.
            parameter.data *= 0.2
        elif "lora_" not in name or "magnitude" in name:
            # Biases, whole modules and DoRA's magnitudes keep to the size that they had in the base model.
            parameter.data.copy_(before[name] * (1 + 0.2 * torch.tanh(parameter)) + 0.02 * torch.tanh(parameter))
    model.save_pretrained(folder)
    return {
        **_adapted(model),
        "details": _details(model),
        "trainable": model.get_nb_trainable_parameters()[0],
        "tensors": _tensors(folder),
        "config": json.loads(Path(folder, "adapter_config.json").read_text()),
    }


def _tensors(folder):
    with safe_open(Path(folder, _WEIGHTS), "pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}


def _load(model_folder, adapter_folder, merged=False):
    """The model with an adapter that is read by peft itself, and the keys on which the file and the model differ."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder).eval()
    expected = {name: list(value.shape) for name, value in get_peft_model_state_dict(model).items()}
    found = _tensors(adapter_folder)
    report = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "misshapen": sorted(name for name in set(found) & set(expected) if found[name] != expected[name]),
        **_adapted(model),
        "details": _details(model),
    }
    return (model.merge_and_unload() if merged else model), report


def logits(model_folder, adapter_folder, ids, output, merged=False):
    """Writes "logits" of the model with the adapter, applied or merged; returns the report of `_load`."""
    model, report = _load(model_folder, adapter_folder, merged)
    store(output, {"logits": model(input_ids=as_ids(ids), use_cache=False).logits})
    return report


def merge(model_folder, adapter_folder, folder):
    """Saves the merged model as a folder."""
    model, report = _load(model_folder, adapter_folder, merged=True)
    model.save_pretrained(folder)
    return report


def deltas(model_folder, adapter_folder, output):
    """Writes what merging changes: for each parameter of the base model that differs, merged minus base (float32)."""
    base = fresh_model(model_folder).state_dict()
    model, report = _load(model_folder, adapter_folder, merged=True)
    changed = {}
    for name, value in model.state_dict().items():
        difference = value.double() - base[name].double()
        if difference.abs().max() > 0:
            changed[name] = difference.float()
    store(output, changed)
    return {**report, "changed": sorted(changed)}


def gradients(model_folder, adapter_folder, ids, labels, output):
    """Writes the gradient of the mean loss for each trainable tensor, by its name in the adapter's file."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    with torch.enable_grad():
        model = PeftModel.from_pretrained(fresh_model(model_folder), adapter_folder, is_trainable=True).eval()
        loss = model(input_ids=as_ids(ids), labels=as_ids(labels), use_cache=False).loss
        loss.backward()
    named = dict(model.named_parameters())
    grads = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    renamed = get_peft_model_state_dict(model, state_dict=grads)
    store(output, renamed)
    return {"loss": loss.item(), "tensors": sorted(renamed)}


def train(model_folder, config, seed, ids, labels, steps, lr, folder, weight_decay=0.0, adapter=None):
    """Trains an adapter with AdamW on one batch, from random weights or from an adapter's; returns each step's loss.

    What is saved in `folder` is the adapter after the last step; with `adapter`, `config` and `seed` are not used.
    """
    from peft import PeftModel

    if adapter is None:
        make_adapter(model_folder, folder, seed, config)
        adapter = folder
    with torch.enable_grad():
        model = PeftModel.from_pretrained(fresh_model(model_folder), adapter, is_trainable=True).eval()
        optimiser = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=lr,
            weight_decay=weight_decay,
        )
        losses = []
        for _ in range(steps):
            optimiser.zero_grad()
            loss = model(input_ids=as_ids(ids), labels=as_ids(labels), use_cache=False).loss
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    model.save_pretrained(folder)
    return losses


def merged_text(folder, text, output):
    """Writes "logits" of a merged folder for a text that the folder's own tokenizer reads; returns the tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    store(output, {"logits": model.eval()(as_ids(ids), use_cache=False).logits})
    return {
        "ids": ids,
        "missing": sorted(map(str, report["missing_keys"])),
        "unexpected": sorted(map(str, report["unexpected_keys"])),
        "generation": model.generation_config.to_diff_dict(),
    }


def documented_deltas(document, heading, model_folder, adapter_folder, output):
    """Runs the program that a section of the document gives, and writes the updates that it computes (float64)."""
    section = Path(document).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    program = section.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(program, scope)
    weights = {name: value.numpy() for name, value in fresh_model(model_folder).state_dict().items()}
    updates = scope["delta_weights"](adapter_folder, weights)
    return store(output, {name: torch.from_numpy(value.copy()) for name, value in updates.items()})
