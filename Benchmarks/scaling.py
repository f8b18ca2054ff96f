"""How the time of a training step (bf16) grows with rank, sequence, batch and layers.

The figure is the largest growth of the time a unit (a token, a layer, a multiplication) from one size to any larger one:
1 is linear, less is better. Time is processor time, the least of all steps of a point: other work on the machine only
adds to it.
"""

import json
import re
import shutil
from pathlib import Path

from support import LENGTH, RANK, ROWS, converted_model, long_rows, lora_settings, step_words, train

WARM_UP, STEPS = 1, 3
RANKS, SEQUENCES, BATCHES, LAYERS = [1, 8, 64], [128, 512, 2048, 4096], [1, 8, 32], [1, 8, 30]
BATCH_LENGTH = 128


def quickest(found):
    return min(found["processor"][WARM_UP:])


def sweep(name, rounds, sizes, seconds_of, units):
    """Measures all sizes in turn; `units` says what the time of a size is divided by."""
    points = {size: [] for size in sizes}
    for number in range(rounds):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            points[size].append(seconds_of(size))

    def growth(times):
        rates = [time / units(size) for size, time in zip(sizes, times)]
        return max(rates[b] / rates[a] for b in range(len(sizes)) for a in range(b))

    best = growth([min(points[size]) for size in sizes])
    return {name: {"pairs": [[best, 1]], "points": {str(size): points[size] for size in sizes}}}


def by_rank(folder, rounds):
    data, ids = long_rows(folder)

    def seconds(rank):
        return quickest(train(folder, data, *step_words("bfloat16"), settings=lora_settings(rank), steps=STEPS))

    # A token's multiplications: twice through the frozen weights (no gradients of them), three times through factors.
    config = json.loads((Path(converted_model()) / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shared = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes = [(hidden, hidden)] * 2 + [(hidden, shared)] * 2 + [(hidden, inner)] * 3
    frozen = layers * sum(a * b for a, b in shapes) + hidden * config["vocab_size"]
    factors = layers * sum(a + b for a, b in shapes)
    return sweep("scaling-rank", rounds, RANKS, seconds, lambda rank: 2 * frozen + 3 * rank * factors)


def by_sequence(folder, rounds):
    """Attention's own term, which is not linear, is measured in the profiled step and left out."""

    def seconds(length):
        data, _ = long_rows(folder, rows=1, length=length)
        words = step_words("bfloat16", rows=1, length=length)
        found = train(folder, data, *words, "--profile", settings=lora_settings(), steps=STEPS)
        text = (found["output"] / "profile.txt").read_text()
        attention = float(re.search(r"^attention +\d+ +([\d.]+)", text, re.MULTILINE).group(1)) / 1000
        whole = float(re.search(r"one step: ([\d.]+) ms", text).group(1)) / 1000
        # The profiled step is the third, the last: its own processor time would include the products measured after it.
        return min(found["processor"][WARM_UP:-1]) * (1 - attention / whole)

    return sweep("scaling-sequence", rounds, SEQUENCES, seconds, lambda length: length)


def by_batch(folder, rounds):
    def seconds(rows):
        data, _ = long_rows(folder, rows=rows, length=BATCH_LENGTH)
        words = step_words("bfloat16", rows=rows, length=BATCH_LENGTH)
        return quickest(train(folder, data, *words, settings=lora_settings(), steps=STEPS))

    return sweep("scaling-batch", rounds, BATCHES, seconds, lambda rows: rows)


def shallow_model(folder, layers):
    """The model with its first blocks alone."""
    from safetensors.torch import load_file, save_file

    source, target = Path(converted_model()), folder / f"layers-{layers}"
    if not target.exists():
        target.mkdir()
        config = json.loads((source / "config.json").read_text())
        kept = {**config, "num_hidden_layers": layers}
        (target / "config.json").write_text(json.dumps(kept))
        for path in source.glob("*token*"):
            shutil.copy(path, target)
        tensors = load_file(source / "model.safetensors")
        few = {k: v for k, v in tensors.items() if ".layers." not in k or int(k.split(".layers.")[1].split(".")[0]) < layers}
        save_file(few, target / "model.safetensors", metadata={"format": "pt"})
    return target


def by_layers(folder, rounds):
    data, _ = long_rows(folder)

    def seconds(layers):
        model = shallow_model(folder, layers)
        return quickest(train(folder, data, *step_words("bfloat16"), model=model, settings=lora_settings(), steps=STEPS))

    return sweep("scaling-layers", rounds, LAYERS, seconds, lambda layers: layers)


MEASUREMENTS = {
    "scaling-rank": by_rank,
    "scaling-sequence": by_sequence,
    "scaling-batch": by_batch,
    "scaling-layers": by_layers,
}
