"""Time and memory of ways to run the blocks beside LoRA, alternately in one run.

One training step of 4 rows of 256 tokens, AdamW, on SmolLM2-135M and on a deeper model of random weights (48 blocks of
the same width). Memory is the peak of the whole process, model included.

    make bench-execution        or        .graft/oracle/bin/python Benchmarks/execution.py [--rounds 3] [--steps 6]
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from support import GRAFT, LENGTH, MODEL, ROOT, ROWS
from training import long_texts

LORA = ["r=8", "target_modules=all-linear"]
ARMS = {
    "LoRA": ("lora", LORA, "fast"),
    "LoRA, half again": ("lora", LORA, "half"),
    "LoRA, all again": ("lora", LORA, "low"),
    "IST": ("ist", [*LORA, "score_interval=3"], "fast"),
    "IST, RST": ("ist", [*LORA, "use_importance=false"], "fast"),
    "MEFT1": ("meft", ["variant=1"], "fast"),
    "MEFT1, kept": ("meft", ["variant=1", "reversible_layers=0"], "fast"),
    "MEFT2": ("meft", ["variant=2"], "fast"),
    "MEFT3": ("meft", ["variant=3"], "fast"),
}


def deeper(folder, blocks):
    """SmolLM2's shape with more blocks, random weights, and its tokenizer."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = ROOT / ".graft/assets/smollm2-135m"
    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers = blocks
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for path in source.glob("*token*"):
        shutil.copy(path, folder)
    return folder, blocks


def run(arm, model, blocks, data, dtype, steps, folder):
    method, settings, memory = ARMS[arm]
    output = Path(tempfile.mkdtemp(dir=folder)) / "run"
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"gradient_checkpointing: {blocks // 2}\n" if memory == "half" else f"memory: {memory}\n")
    command = [GRAFT, "train", "--recipe", recipe, "--model", model, "--data", data, "--method", method]
    command += ["--dtype", dtype, "--output", output, "--steps", steps, "--batch-size", ROWS, "--max-length", LENGTH]
    command += ["--lr", "1e-4", "--warmup-steps", "0", "--schedule", "constant"]
    command += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "tokens_per_second" in row and "loss" in row]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--blocks", type=int, default=48, help="blocks of the deeper model; 0: without it")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_texts(folder)
        models = [(MODEL, 30)] + ([deeper(folder / "deep", options.blocks)] if options.blocks else [])
        print(f"{'blocks':>6} {'dtype':10}{'':18}{'s a step':>10}{'ratio':>8}{'peak':>11}{'ratio':>8}   loss, first and last")
        for model, blocks in models:
            for dtype in options.dtypes:
                runs = {arm: [] for arm in options.arms}
                for _ in range(options.rounds):
                    for arm in options.arms:
                        runs[arm].append(run(arm, model, blocks, data, dtype, options.steps, folder))
                first = None
                for arm, rounds in runs.items():
                    # The first two steps of each run are warm-up.
                    seconds = [ROWS * LENGTH / row["tokens_per_second"] for rows in rounds for row in rows[2:]]
                    step = statistics.median(seconds)
                    peak = max(row["peak_memory_bytes"] for rows in rounds for row in rows)
                    first = first or (step, peak)
                    print(
                        f"{blocks:6} {dtype:10}{arm:18}{step:10.3f}{step / first[0]:8.2f}{peak / 1e6:8.0f} MB"
                        f"{peak / first[1]:8.2f}   {rounds[0][0]['loss']:.4f} {rounds[0][-1]['loss']:.4f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
