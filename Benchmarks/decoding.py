"""Generating text from a quantised file beside llama.cpp (llama-cpp-python).

The same GGUF file (SmolLM2-135M-Instruct, Q4_1 with a Q8_0 embedding), the same threads, batch 1: tokens a second of
greedy decoding (128 tokens after a short prompt), of reading a prompt of 512 tokens, and the time from the start of the
process to the first token.

llama-cpp-python is compiled once, into .graft/peers/llama-cpp; that takes some seven minutes.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from support import GGUF, GRAFT, ROOT, Peer, in_turn, privacy_text, run, tokenize

PEER = ROOT / ".graft/peers/llama-cpp"
VERSION = "0.3.36"
# A build for the machine itself (GGML_NATIVE) can hold instructions that a virtual machine does not run.
INSTRUCTIONS = ["AVX512", "AVX512_VNNI", "AVX512_VBMI", "AVX2", "FMA", "F16C", "BMI2"]
PROMPT = "The capital of France is"
READ, WRITTEN = 512, 128


def install_peer():
    """llama-cpp-python's interpreter; built where it is not there yet."""
    python = PEER / "bin" / "python"
    check = [str(python), "-c", f"import llama_cpp; assert llama_cpp.__version__ == '{VERSION}'"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return python
    print(f"llama-cpp-python {VERSION}: compiling (about 7 minutes, once) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    flags = []
    if platform.machine() == "x86_64":
        cpu = Path("/proc/cpuinfo").read_text()
        flags = ["-DGGML_NATIVE=OFF"] + [f"-DGGML_{name}=ON" for name in INSTRUCTIONS if name.lower() in cpu]
    environment = {**os.environ, "CMAKE_ARGS": " ".join(flags)}
    command = [str(python), "-m", "pip", "install", "--quiet", f"llama-cpp-python=={VERSION}", "numpy"]
    subprocess.run(command, check=True, env=environment)
    return python


def text_server(model, threads):
    """llama.cpp: a question `first` answers after a short prompt's first token; one without it with both speeds."""
    from llama_cpp import Llama

    model = Llama(model, n_ctx=1024, n_batch=READ, n_threads=threads, n_threads_batch=threads, verbose=False)

    def answer(text="", first=False):
        model.reset()
        model.eval(model.tokenize(PROMPT.encode(), add_bos=False))
        token = model.sample(temp=0.0)
        if first:
            return token
        model.eval([token])
        begin = time.perf_counter()
        ids = [token]
        for _ in range(WRITTEN):
            ids.append(model.sample(temp=0.0))
            model.eval(ids[-1:])
        written = WRITTEN / (time.perf_counter() - begin)

        long = model.tokenize(text.encode(), add_bos=False)[:READ]
        model.reset()
        begin = time.perf_counter()
        model.eval(long)
        model.sample(temp=0.0)
        read = len(long) / (time.perf_counter() - begin)
        return {"decoding": written, "prompt": read, "ids": ids[:8]}

    return answer


def long_text():
    """Text of exactly READ tokens, as Graft's tokenizer counts them."""
    words = " ".join(privacy_text(60)).replace("\n", " ").split(" ")
    low, high = 1, len(words)
    while low < high:
        middle = (low + high) // 2
        count = len(tokenize([" ".join(words[:middle])], GGUF)[0])
        low, high = (low, middle) if count >= READ else (middle + 1, high)
    return " ".join(words[:low])


def generate(threads, prompt, count, *words):
    command = [GRAFT, "generate", "--model", GGUF, "--threads", threads, "--prompt", prompt, "--max-tokens", count]
    return list(map(str, [*command, *words]))


def graft_speeds(threads, text):
    # Reading includes the choice of the first token; writing excludes it.
    written = json.loads(run(generate(threads, PROMPT, WRITTEN + 1, "--json")))
    assert written["generated_tokens"] == WRITTEN + 1, "the text ended early"
    read = json.loads(run(generate(threads, text, 1, "--json")))
    speed = read["prompt_tokens"] / read["first_token_seconds"]
    return {"decoding": written["tokens_per_second"], "prompt": speed, "ids": written["ids"][:8]}


def seconds_to_first_byte(command):
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.read(1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    return seconds


def measure(folder, rounds):
    python, text, threads = install_peer(), long_text(), os.cpu_count()
    with Peer("decoding.text_server", python=python, model=str(GGUF), threads=threads) as peer:
        peer.ask(text=text)
        ours, theirs = in_turn(rounds, lambda: graft_speeds(threads, text), lambda: peer.ask(text=text))

    def peer_start():
        with Peer("decoding.text_server", python=python, model=str(GGUF), threads=threads) as peer:
            peer.ask(first=True)
            return time.perf_counter() - peer.started

    starts = in_turn(rounds, lambda: seconds_to_first_byte(generate(threads, PROMPT, 1)), peer_start)
    ids = {"ids": {"graft": ours[0]["ids"], "llama.cpp": theirs[0]["ids"]}}
    rows = {name: {"pairs": [[a[name], b[name]] for a, b in zip(ours, theirs)], **ids} for name in ("decoding", "prompt")}
    return {**rows, "first-token": {"pairs": list(zip(*starts))}}


MEASUREMENTS = {"decoding": measure}
