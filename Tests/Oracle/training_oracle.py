"""Training as transformers, peft and torch do it: losses a row, AdamW, clipping, and a loop over given batches."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from models_oracle import make_model
from support import fresh_model, load_model, store

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = ["the quick brown fox jumps over the lazy dog", "what is the answer to this question", "12345 + 67890 = 80235"]


def make_chat_model(folder, seed, bos=False):
    """A tiny random Llama with a byte-level tokenizer of its own and a ChatML template, as one model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        _CORPUS * 4,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    overrides = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    make_model("llama", seed, folder, overrides=overrides)
    tokenizer.save(str(Path(folder, "tokenizer.json")))
    settings = {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>", "add_bos_token": bos, "chat_template": _CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def _labels(rows):
    """Padded ids and labels of [ids, supervised] rows; -100 where nothing is learnt."""
    time = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), time, dtype=torch.long)
    labels = torch.full((len(rows), time), -100)
    mask = torch.zeros(len(rows), time, dtype=torch.long)
    for index, (row, supervised) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
        chosen = torch.tensor(supervised, dtype=torch.bool)
        labels[index, : len(row)][chosen] = torch.tensor(row)[chosen]
    return ids, labels, mask


def losses(folder, rows, gguf=None):
    """Mean loss and count of supervised tokens of each row, one row at a time, from transformers' own loss."""
    if gguf:
        from models_oracle import gguf_folder

        folder = gguf_folder(gguf)
    model = load_model(folder)
    result = []
    for row in rows:
        ids, labels, _ = _labels([row])
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        result.append([loss.item(), int((labels[:, 1:] != -100).sum())])
    return result


def objective(folder, rows, output):
    """Transformers' mean loss of a padded batch; writes the gradient of every parameter."""
    ids, labels, mask = _labels(rows)
    with torch.enable_grad():
        model = fresh_model(folder)
        loss = model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss
        loss.backward()
    store(output, {name: value.grad for name, value in model.named_parameters()})
    return loss.item()


def packed_objective(folder, rows, output):
    """The same for rows in one sequence with positions that begin anew, from which transformers itself makes the mask."""
    ids = torch.tensor([[token for row, _ in rows for token in row]])
    positions = torch.tensor([[index for row, _ in rows for index in range(len(row))]])
    labels = torch.tensor(
        [[token if learnt and index else -100 for row, flags in rows for index, (token, learnt) in enumerate(zip(row, flags))]]
    )
    with torch.enable_grad():
        model = fresh_model(folder)
        loss = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss
        loss.backward()
    store(output, {name: value.grad for name, value in model.named_parameters()})
    return loss.item()


def adamw(path, output, steps, lr, betas, eps, weight_decay, clip=0.0, fused=False):
    """Parameters p.<name> after AdamW steps with the gradients g.<step>.<name>; returns the norms before clipping."""
    tensors = load_file(path)
    names = sorted(name[2:] for name in tensors if name.startswith("p."))
    parameters = [torch.nn.Parameter(tensors["p." + name].clone()) for name in names]
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=fused)
    norms = []
    for step in range(steps):
        for name, parameter in zip(names, parameters):
            parameter.grad = tensors[f"g.{step}.{name}"].clone()
        if clip:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip).item())
        optimiser.step()
    store(output, dict(zip(names, parameters)))
    return norms


def train(folder, adapter, steps, lrs, weight_decay, clip, output):
    """A plain loop with peft: one [ids, supervised] batch and one learning rate a step; returns losses and norms."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    losses, norms = [], []
    with torch.enable_grad():
        model = PeftModel.from_pretrained(fresh_model(folder), adapter, is_trainable=True).eval()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1.0, weight_decay=weight_decay)
        for rows, lr in zip(steps, lrs):
            optimiser.param_groups[0]["lr"] = lr
            ids, labels, mask = _labels(rows)
            loss = model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss
            optimiser.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(trained, clip).item())
            optimiser.step()
            losses.append(loss.item())
    store(output, get_peft_model_state_dict(model))
    return {"losses": losses, "norms": norms}

