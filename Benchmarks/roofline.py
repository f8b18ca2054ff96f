"""The share of the machine's own rate of products that a training step reaches.

`graft train --profile` measures, within the same run, the step's products with frozen weights by themselves: one after
the other, each with its own weight, as it is and in the layout of oneDNN's choice; of each shape the quicker layout
counts. The share is their time by that of the run's other steps, which nothing observes. By processor time it is what
the step would reach if no core ever waited for the other.
"""

import functools
import os
import re

from support import LENGTH, ROWS, long_rows, lora_settings, median, step_words, train

WARM_UP, PROFILED, STEPS = 1, 2, 5
CLOCKS = "seconds", "processor"


def measure(dtype, folder, rounds):
    data, _ = long_rows(folder)
    pairs, work = [], []
    for _ in range(rounds):
        found = train(folder, data, *step_words(dtype), "--profile", settings=lora_settings(), steps=STEPS)
        seconds, computed = (found[clock][:PROFILED][WARM_UP:] + found[clock][PROFILED + 1 :] for clock in CLOCKS)
        text = (found["output"] / "profile.txt").read_text()
        products = float(re.search(r"by themselves: ([\d.]+) ms", text).group(1)) / 1000
        pairs.append([ROWS * LENGTH / median(seconds), ROWS * LENGTH / products])
        work.append([ROWS * LENGTH * os.cpu_count() / median(computed), ROWS * LENGTH / products])
    name = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    return {f"roofline-{name}": {"pairs": pairs, "processor": work}}


MEASUREMENTS = {
    "roofline-bf16": functools.partial(measure, "bfloat16"),
    "roofline-fp32": functools.partial(measure, "float32"),
}
