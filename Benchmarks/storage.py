"""LoRA over the same model held in different ways: time of a step and peak memory, alternately in one run.

LoRA of rank 8 on all seven linear layers of SmolLM2-135M, 4 rows of 256 tokens a step. Plain weights are bfloat16; nf4
(with quantised scales) and int8 are made from them while they are read; blocks are the Q4_1 blocks of the GGUF file as
they are. Memory is the peak of the process and what the weights take in it.

    make bench-storage        or        .graft/oracle/bin/python Benchmarks/storage.py [--rounds 3] [--steps 6]
"""

import argparse
import json
import tempfile
from pathlib import Path

from support import MODEL, converted_model, in_turn, lora_settings, long_rows, median, run, step_words, train, train_command

WARM_UP = 2
FORMS = {
    "plain bfloat16": ["--quantization", "none"],
    "int8": ["--quantization", "int8"],
    "nf4": ["--quantization", "nf4"],
    "nf4, plain scales": ["--quantization", "nf4", "--no-double-quant"],
    "Q4_1 blocks": ["--quantization", "keep"],
}


def options_of(form):
    """Blocks are in the GGUF file alone; the others begin from the same values in a folder."""
    return {"model": MODEL if form.endswith("blocks") else converted_model(), "settings": lora_settings()}


def weight_bytes(form, data, folder):
    """The bytes that the frozen weights take, as the plan of the run says."""
    words = [*step_words("bfloat16"), *FORMS[form], "--dry-run", "--json"]
    plan = run(train_command(data, folder / "none", *words, steps=1, **options_of(form)))
    return json.loads(plan)["memory_bytes"]["frozen_weights"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_rows(folder)
        measures = [
            lambda form=form: train(
                folder, data, *step_words("bfloat16"), *FORMS[form], steps=options.steps, **options_of(form))
            for form in FORMS
        ]
        print(f"{'weights held as':20}{'take':>9}{'peak':>9}{'ratio':>7}{'s a step':>10}{'ratio':>7}{'cpu s':>8}{'ratio':>7}   loss")
        first = None
        for form, runs in zip(FORMS, in_turn(options.rounds, *measures)):
            step = median(seconds for one in runs for seconds in one["seconds"][WARM_UP:])
            work = median(seconds for one in runs for seconds in one["processor"][WARM_UP:])
            peak, losses = median(one["peak"] for one in runs), runs[0]["losses"]
            first = first or (peak, step, work)
            print(
                f"{form:20}{weight_bytes(form, data, folder) / 1e6:6.0f} MB{peak / 1e6:6.0f} MB{peak / first[0]:7.2f}"
                f"{step:10.3f}{step / first[1]:7.2f}{work:8.2f}{work / first[2]:7.2f}   {losses[0]:.4f} to {losses[-1]:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
