"""LoRA over the same model held in different ways: time of a step and peak memory, alternately in one run.

LoRA of rank 8 on all seven linear layers of SmolLM2-135M, 4 rows of 256 tokens a step. Plain weights are bfloat16; nf4
(with quantised scales) and int8 are made from them while they are read; blocks are the Q4_1 blocks of the GGUF file as
they are. Memory is the peak of the process and what the weights take in it.

    make bench-storage        or        .graft/oracle/bin/python Benchmarks/storage.py [--rounds 3] [--steps 6]
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from training import GRAFT, LENGTH, MODEL, ROWS, converted_model, long_texts

FORMS = {
    "plain bfloat16": ["--quantization", "none"],
    "int8": ["--quantization", "int8"],
    "nf4": ["--quantization", "nf4"],
    "nf4, plain scales": ["--quantization", "nf4", "--no-double-quant"],
    "Q4_1 blocks": ["--quantization", "keep"],
}


def command(model, data, form, extra):
    words = [GRAFT, "train", "--model", model, "--data", data, "--dtype", "bfloat16", "--batch-size", ROWS]
    words += ["--max-length", LENGTH, "--set", "r=8", "--set", "target_modules=all-linear", *FORMS[form], *extra]
    return list(map(str, words))


def run(model, data, form, folder, steps):
    output = folder / f"{form.replace(' ', '-')}-{time.time_ns()}"
    extra = ["--steps", steps, "--lr", "1e-4", "--schedule", "constant", "--output", output]
    subprocess.run(command(model, data, form, extra), check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "tokens_per_second" in row and "loss" in row]
    return {
        "seconds": [ROWS * LENGTH / row["tokens_per_second"] for row in steps][2:],
        "peak": max(row.get("peak_memory_bytes", 0) for row in rows),
        "loss": (steps[0]["loss"], steps[-1]["loss"]),
    }


def weights(model, data, form):
    """The bytes that the frozen weights take, as the plan of the run says."""
    result = subprocess.run(
        command(model, data, form, ["--steps", "1", "--dry-run", "--json"]), check=True, capture_output=True, text=True)
    return json.loads(result.stdout)["memory_bytes"]["frozen_weights"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_texts(folder)
        folder_of_model = converted_model()
        # Blocks are in the GGUF file alone; the others begin from the same values in a folder.
        models = {form: MODEL if form.endswith("blocks") else folder_of_model for form in FORMS}
        runs = {form: [] for form in FORMS}
        for _ in range(options.rounds):
            for form in FORMS:
                runs[form].append(run(models[form], data, form, folder, options.steps))
        seconds = {form: statistics.median(s for r in runs[form] for s in r["seconds"]) for form in FORMS}
        peak = {form: max(r["peak"] for r in runs[form]) for form in FORMS}
        first = next(iter(FORMS))
        print(f"{'weights held as':20}{'take':>9}{'peak':>9}{'of plain':>9}{'step':>9}{'of plain':>9}{'spread':>8}   loss")
        for form in FORMS:
            medians = [statistics.median(r["seconds"]) for r in runs[form]]
            spread = (max(medians) - min(medians)) / statistics.median(medians)
            loss = runs[form][0]["loss"]
            print(f"{form:20}{weights(models[form], data, form) / 1e6:6.0f} MB{peak[form] / 1e6:6.0f} MB"
                  f"{peak[form] / peak[first]:9.2f}{seconds[form] * 1000:6.0f} ms{seconds[form] / seconds[first]:9.2f}"
                  f"{spread:8.0%}   {loss[0]:.4f} to {loss[1]:.4f}")


if __name__ == "__main__":
    main()
