"""Speed of training on rows of mixed lengths: side by side, by tokens, and packed, alternately in one run.

LoRA of rank 8 on all seven linear layers of SmolLM2-135M; the same rows in the same steps, so the losses agree. A step
takes 32 rows; tokens that fill rows up are not counted.

    make bench-packing        or        .graft/oracle/bin/python Benchmarks/packing.py [--rounds 3] [--steps 6]
"""

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from support import in_turn, lora_settings, median, privacy_text, train, write_rows

WARM_UP = 2
STEP_ROWS = 32
LAYOUTS = {
    "8 rows a pass": ["--batch-size", "8", "--accumulate", "4"],
    "1024 tokens a pass": ["--batch-size", "32", "--batch-tokens", "1024"],
    "1024 tokens a pass, packed": ["--batch-size", "32", "--batch-tokens", "1024", "--packing"],
    "2048 tokens a pass, packed": ["--batch-size", "32", "--batch-tokens", "2048", "--packing"],
}


def mixed_rows(folder, count):
    """Rows of real text whose lengths spread widely, as those of instructions and answers do."""
    words = " ".join(privacy_text(400)).split()
    draw = random.Random(7)
    rows = []
    for _ in range(count):
        length = min(350, max(5, round(draw.lognormvariate(4.0, 0.9))))
        start = draw.randrange(len(words) - length)
        rows.append({"text": " ".join(words[start:start + length])})
    return write_rows(folder / "rows.jsonl", rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = mixed_rows(folder, STEP_ROWS * options.steps)
        for dtype in options.dtype or ["float32", "bfloat16"]:
            words = ["--dtype", dtype, "--max-length", "512"]
            measures = [
                lambda layout=layout: train(folder, data, *words, *layout, settings=lora_settings(), steps=options.steps)
                for layout in LAYOUTS.values()
            ]
            for name, runs in zip(LAYOUTS, in_turn(options.rounds, *measures)):
                steps = [row for run in runs for row in run["steps"][WARM_UP:]]
                padding = statistics.mean(row.get("padding_share", 0) for run in runs for row in run["steps"])
                losses = runs[0]["losses"]
                print(
                    f"{dtype}, {name}: {median(row['tokens_per_second'] for row in steps):.0f} tokens/s, "
                    f"{padding:.0%} filling, peak {max(run['peak'] for run in runs) / 1e6:.0f} MB, "
                    f"loss {losses[0]:.4f} to {losses[-1]:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
