"""Time and memory of ways to run the blocks beside LoRA, alternately in one run.

One training step of 4 rows of 256 tokens, AdamW, on SmolLM2-135M and on a deeper model of random weights (48 blocks of
the same width). Memory is the peak of the whole process, model included.

    make bench-execution        or        .graft/oracle/bin/python Benchmarks/execution.py [--rounds 3] [--steps 6]
"""

import tempfile
from functools import partial
from pathlib import Path

from support import MODEL, arm_options, converted_model, long_rows, step_table, step_words, train

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

    source = Path(converted_model())
    config = AutoConfig.from_pretrained(source)
    config.num_hidden_layers = blocks
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for path in source.glob("*token*"):
        shutil.copy(path, folder)
    return folder, blocks


def run(arm, model, blocks, data, dtype, steps, folder):
    method, settings, memory = ARMS[arm]
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"gradient_checkpointing: {blocks // 2}\n" if memory == "half" else f"memory: {memory}\n")
    words = ["--recipe", recipe, *step_words(dtype)]
    return train(folder, data, *words, model=model, method=method, settings=settings, steps=steps)


def main():
    parser = arm_options(__doc__, ARMS)
    parser.add_argument("--blocks", type=int, default=48, help="blocks of the deeper model; 0: without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, _ = long_rows(folder)
        models = [(MODEL, 30)] + ([deeper(folder / "deep", options.blocks)] if options.blocks else [])
        groups = [
            (
                f"{blocks:6} {dtype:10}",
                {arm: partial(run, arm, model, blocks, data, dtype, options.steps, folder) for arm in options.arms},
            )
            for model, blocks in models
            for dtype in options.dtypes
        ]
        step_table(f"{'blocks':>6} {'dtype':10}", groups, options.rounds)


if __name__ == "__main__":
    main()
