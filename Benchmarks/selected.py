"""Speed and memory of methods that train selected parameters beside LoRA, alternately in one run.

One training step on SmolLM2-135M, 4 rows of 256 tokens, AdamW. PaCA at LoRA's rank and at twice the rank, which trains
about as many values; S2FT trains exactly as many. Memory is the peak of the whole process, model included.

    make bench-selected        or        .graft/oracle/bin/python Benchmarks/selected.py [--rounds 3] [--steps 6]
"""

import argparse
import tempfile
from pathlib import Path

from support import in_turn, long_rows, median, step_words, train

WARM_UP = 2
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
    found = train(folder, data, *step_words(dtype), method=method, settings=settings, steps=steps)
    return {**found, "file": (found["output"] / "adapter/adapter_model.safetensors").stat().st_size}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_rows(folder)
        print(f"{'dtype':10}{'':14}{'s a step':>10}{'ratio':>8}{'peak':>11}{'ratio':>8}{'file':>11}   loss, first and last")
        for dtype in options.dtypes:
            measures = [lambda arm=arm: run(arm, data, dtype, options.steps, folder) for arm in options.arms]
            first = None
            for arm, runs in zip(options.arms, in_turn(options.rounds, *measures)):
                step = median(seconds for one in runs for seconds in one["seconds"][WARM_UP:])
                peak, losses = max(one["peak"] for one in runs), runs[0]["losses"]
                first = first or (step, peak)
                print(
                    f"{dtype:10}{arm:14}{step:10.3f}{step / first[0]:8.2f}{peak / 1e6:8.0f} MB{peak / first[1]:8.2f}"
                    f"{runs[0]['file'] / 1e6:8.2f} MB   {losses[0]:.4f} {losses[-1]:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
