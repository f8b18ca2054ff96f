"""Speed and memory of methods that train selected parameters, and of MiSS, beside LoRA, alternately in one run.

One training step on SmolLM2-135M, 4 rows of 256 tokens, AdamW. PaCA at LoRA's rank and at twice the rank, which trains
about as many values; S2FT trains exactly as many, MiSS and Bone 2% more. Memory is the peak of the whole process, model included.

    make bench-selected        or        .graft/oracle/bin/python Benchmarks/selected.py [--rounds 3] [--steps 6]
"""

import tempfile
from functools import partial
from pathlib import Path

from support import arm_options, long_rows, step_table, step_words, train

ARMS = {
    "LoRA, r 8": ("lora", ["r=8", "target_modules=all-linear"]),
    "PaCA, r 8": ("paca", ["r=8", "target_modules=all-linear"]),
    "PaCA, r 16": ("paca", ["r=16", "target_modules=all-linear"]),
    # 31 heads of 64 features and 2256 channels, 576 values each: as many as LoRA's.
    "S2FT": ("s2ft", ["ratio_o=0.118", "ratio_d=0.04896"]),
    "MiSS, r 16": ("miss", ["r=16", "target_modules=all-linear"]),
    "Bone, r 16": ("bone", ["r=16", "target_modules=all-linear"]),
    "LN-tuning": ("ln-tuning", []),
    "BitFit": ("bitfit", []),
    "full": ("full", []),
}


def run(arm, data, dtype, steps, folder):
    method, settings = ARMS[arm]
    return train(folder, data, *step_words(dtype), method=method, settings=settings, steps=steps)


def main():
    options = arm_options(__doc__, ARMS).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_rows(folder)
        groups = [
            (f"{dtype:10}", {arm: partial(run, arm, data, dtype, options.steps, folder) for arm in options.arms})
            for dtype in options.dtypes
        ]
        step_table(f"{'dtype':10}", groups, options.rounds)


if __name__ == "__main__":
    main()
