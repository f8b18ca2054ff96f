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

from support import MODEL, converted_model, in_turn, long_rows, lora_settings, median, run, step_words, train
from support import train_command

WARM_UP = 2
FORMS = {
    "plain bfloat16": ["--quantization", "none"],
    "int8": ["--quantization", "int8"],
    "nf4": ["--quantization", "nf4"],
    "nf4, plain scales": ["--quantization", "nf4", "--no-double-quant"],
    "Q4_1 blocks": ["--quantization", "keep"],
}


def weights(folder, data, words, options):
    """The bytes that the frozen weights take, as the plan of the run says."""
    command = train_command(data, folder / "plan", *words, "--dry-run", "--json", **options)
    return json.loads(run(command))["memory_bytes"]["frozen_weights"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_rows(folder)
        words = {form: [*step_words("bfloat16"), *extra] for form, extra in FORMS.items()}
        # Blocks are in the GGUF file alone; the others begin from the same values in a folder.
        models = {form: MODEL if form.endswith("blocks") else converted_model() for form in FORMS}
        common = {form: {"model": models[form], "settings": lora_settings(), "steps": options.steps} for form in FORMS}
        measures = [lambda form=form: train(folder, data, *words[form], **common[form]) for form in FORMS]
        runs = dict(zip(FORMS, in_turn(options.rounds, *measures)))
        seconds = {form: median(s for r in runs[form] for s in r["seconds"][WARM_UP:]) for form in FORMS}
        peak = {form: max(r["peak"] for r in runs[form]) for form in FORMS}
        first = next(iter(FORMS))
        print(f"{'weights held as':20}{'take':>9}{'peak':>9}{'of plain':>9}{'step':>9}{'of plain':>9}{'spread':>8}   loss")
        for form in FORMS:
            medians = [median(r["seconds"][WARM_UP:]) for r in runs[form]]
            spread = (max(medians) - min(medians)) / median(medians)
            losses = runs[form][0]["losses"]
            held = weights(folder, data, words[form], common[form])
            print(f"{form:20}{held / 1e6:6.0f} MB{peak[form] / 1e6:6.0f} MB"
                  f"{peak[form] / peak[first]:9.2f}{seconds[form] * 1000:6.0f} ms{seconds[form] / seconds[first]:9.2f}"
                  f"{spread:8.0%}   {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
