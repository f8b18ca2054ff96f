"""The share of the machine's own rate of products that a training step reaches.

`graft train --profile` measures, within the same run, the step's products with frozen weights by themselves: of each
shape the quickest of four, with the weight as it is and in the layout of oneDNN's choice. The share is their time by
that of the run's other steps, which nothing observes. Products are short enough to be measured between other programs'
turns, steps are not: by processor time the share is what the step would reach if the cores were its own.
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
