#!/usr/bin/env python3
"""What a run of several processes moves and stores, computed from shapes: the tables of docs/scale.md.

    python3 scripts/scale.py                  print them
    python3 scripts/scale.py docs/scale.md    write them into the page

Change the lists below to see other models, worker counts and networks.
"""

import sys

RANK = 16  # of LoRA on the seven linear layers of every block
ROWS, TOKENS = 8, 1024  # of one forward pass

# name: blocks, hidden size, width of keys and values, width of the MLP, vocabulary, whether the head is the embedding
MODELS = {
    "1B": (16, 2048, 512, 8192, 128256, True),  # Llama-3.2-1B
    "7B": (32, 4096, 4096, 11008, 32000, False),  # Llama-2-7B
    "70B": (80, 8192, 1024, 28672, 128256, False),  # Llama-3-70B
}
WORKERS = (1, 8, 64, 1000)
# name: bits a second in each direction, seconds for a message from one worker to the next
NETWORKS = {"10 Gb/s": (10e9, 50e-6), "100 Gb/s": (100e9, 10e-6), "400 Gb/s": (400e9, 5e-6)}
# name: floating-point operations a second in bf16 that a worker sustains
DEVICES = {"16 cores with AMX": 4e12, "one H100": 400e12}


def layers(model):
    """The (inputs, outputs) of a block's seven linear layers."""
    _, hidden, keys, wide, _, _ = MODELS[model]
    return [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), (hidden, wide), (hidden, wide), (wide, hidden)]


def frozen(model):
    blocks, hidden, _, _, vocabulary, tied = MODELS[model]
    block = sum(i * o for i, o in layers(model)) + 2 * hidden
    return blocks * block + vocabulary * hidden * (1 if tied else 2) + hidden


def adapter(model):
    return MODELS[model][0] * RANK * sum(i + o for i, o in layers(model))


def tensors(model):
    return MODELS[model][0] * 2 * len(layers(model))


def moved(model, workers):
    """Bytes that a worker sends (and receives) in a step: a ring all-reduce of the gradients and one of the sums."""
    return 2 * (workers - 1) / workers * (4 * adapter(model) + 8 * (5 + tensors(model)))


def exchange(model, workers, network):
    """Seconds: the bytes through one link, and 2 (workers - 1) hops for each of the two all-reduces."""
    bits, hop = NETWORKS[network]
    return 8 * moved(model, workers) / bits + 2 * 2 * (workers - 1) * hop


def compute(model, device):
    """Seconds of one forward and backward pass: 2 operations a weight and token forward, 2 backward (frozen weights
    have no gradient)."""
    return 4 * frozen(model) * ROWS * TOKENS / DEVICES[device]


def size(count):
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}" if count / step < 1000 else f"{count / step:.0f} {unit}"
    return f"{count:.0f} B"


def seconds(value):
    number, unit = (value, "s") if value >= 1 else (value * 1e3, "ms")
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def stored():
    rows = []
    for model in MODELS:
        count = adapter(model)
        rows.append(
            [model, f"{frozen(model) / 1e9:.2f} billion", size(2 * frozen(model)), f"{count / 1e6:.1f} million"]
            + [size(factor * count) for factor in (4, 4, 8, 16)]
        )
    head = ["model", "frozen values", "frozen, bf16", "trained values", "adapter", "gradients", "optimiser", "a checkpoint"]
    return table(head, rows)


def whole():
    rows = []
    for workers in WORKERS:
        row = [f"{workers}"]
        for model in MODELS:
            row += [size(workers * 2 * frozen(model)), size(workers * 16 * adapter(model))]
        rows.append(row)
    return table(["workers"] + [f"{model}: {what}" for model in MODELS for what in ("frozen", "the rest")], rows)


def traffic():
    rows = []
    for model in MODELS:
        for workers in WORKERS[1:]:
            rows.append(
                [model, f"{workers}", size(moved(model, workers))]
                + [seconds(exchange(model, workers, network)) for network in NETWORKS]
            )
    return table(["model", "workers", "bytes a worker and step"] + list(NETWORKS), rows)


def worth():
    rows = []
    for model in MODELS:
        for device in DEVICES:
            time = compute(model, device)
            row = [model, device, seconds(time)]
            for network in NETWORKS:
                row.append(f"{100 * time / (time + exchange(model, 64, network)):.1f}%")
            rows.append(row)
    return table(["model", "worker", "one pass"] + [f"at work, {network}" for network in NETWORKS], rows)


def sharded():
    rows = []
    for model in MODELS:
        # Forward and backward each need every block's weights once.
        once = 2 * 2 * frozen(model)
        rows.append(
            [model, size(2 * frozen(model) / 8), size(once)]
            + [seconds(8 * once / bits) for bits, _ in NETWORKS.values()]
            + [seconds(compute(model, "one H100"))]
        )
    return table(["model", "frozen, an eighth", "bytes a worker and pass"] + list(NETWORKS) + ["one pass, H100"], rows)


def main():
    parts = {"stored": stored(), "whole": whole(), "traffic": traffic(), "worth": worth(), "sharded": sharded()}
    if len(sys.argv) < 2:
        return print("\n\n".join(parts.values()))
    with open(sys.argv[1], encoding="utf-8") as file:
        page = file.read()
    for name, text in parts.items():
        begin, end = f"<!-- {name}: written by scripts/scale.py -->\n", f"<!-- /{name} -->"
        before, _, rest = page.partition(begin)
        page = before + begin + text + "\n" + end + rest.partition(end)[2]
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(page)


main()
