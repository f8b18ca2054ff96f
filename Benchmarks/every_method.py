"""Time and memory of a training step of every method beside LoRA's, alternately in one run.

One step of 4 rows of 256 tokens on SmolLM2-135M, AdamW, each method with its defaults. Memory is the peak of the whole
process, model included. On a busy machine the processor seconds are the column to look at.

    make bench-methods        or        .graft/oracle/bin/python Benchmarks/every_method.py [--rounds 2] [--steps 5]
"""

import tempfile
from functools import partial
from pathlib import Path

from support import every_method, long_rows, step_options, step_table, step_words, train


def main():
    parser = step_options(__doc__, rounds=2, steps=5)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_rows(folder)
        words = [folder, data, *step_words(options.dtype)]
        arms = {method: partial(train, *words, method=method, steps=options.steps) for method in every_method()}
        step_table("", [("", arms)], options.rounds)


if __name__ == "__main__":
    main()
