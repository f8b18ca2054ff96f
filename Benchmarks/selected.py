"""Speed and memory of methods that train selected parameters beside LoRA, alternately in one run.

One training step on SmolLM2-135M, 4 rows of 256 tokens, AdamW. PaCA at LoRA's rank and at twice the rank, which trains
about as many values; S2FT trains exactly as many. Memory is the peak of the whole process, model included.

    make bench-selected        or        .graft/oracle/bin/python Benchmarks/selected.py [--rounds 3] [--steps 6]
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from training import GRAFT, LENGTH, MODEL, ROWS, long_texts

ARMS = {
    "LoRA, r 8": ("lora", ["r=8", "target_modules=all-linear"]),
    "PaCA, r 8": ("paca", ["r=8", "target_modules=all-linear"]),
    "PaCA, r 16": ("paca", ["r=16", "target_modules=all-linear"]),
    # 31 heads of 64 features and 2256 channels, 576 values each: as many as LoRA's.
    "S2FT": ("s2ft", ["ratio_o=0.118", "ratio_d=0.04896"]),
    "LN-tuning": ("ln-tuning", []),
    "BitFit": ("bitfit", []),
    "full": ("full", []),
}


def run(arm, data, dtype, steps, folder):
    method, settings = ARMS[arm]
    output = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [GRAFT, "train", "--model", MODEL, "--data", data, "--method", method, "--dtype", dtype, "--output", output]
    command += ["--steps", steps, "--batch-size", ROWS, "--max-length", LENGTH, "--lr", "1e-4"]
    command += ["--warmup-steps", "0", "--schedule", "constant"]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    adapter = output / "adapter" / "adapter_model.safetensors"
    return {
        "steps": [row for row in rows if "tokens_per_second" in row and "loss" in row],
        "peak": max(row.get("peak_memory_bytes", 0) for row in rows),
        "file": adapter.stat().st_size,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_texts(folder)
        print(f"{'dtype':10}{'':14}{'s a step':>10}{'ratio':>8}{'peak':>11}{'ratio':>8}{'file':>11}   loss, first and last")
        for dtype in options.dtypes:
            runs = {arm: [] for arm in options.arms}
            for _ in range(options.rounds):
                for arm in options.arms:
                    runs[arm].append(run(arm, data, dtype, options.steps, folder))
            first = None
            for arm, rounds in runs.items():
                # The first two steps of each run are warm-up.
                seconds = [ROWS * LENGTH / row["tokens_per_second"] for one in rounds for row in one["steps"][2:]]
                step, peak = statistics.median(seconds), max(one["peak"] for one in rounds)
                first = first or (step, peak)
                losses = rounds[0]["steps"]
                print(
                    f"{dtype:10}{arm:14}{step:10.3f}{step / first[0]:8.2f}{peak / 1e6:8.0f} MB{peak / first[1]:8.2f}"
                    f"{rounds[0]['file'] / 1e6:8.2f} MB   {losses[0]['loss']:.4f} {losses[-1]['loss']:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
