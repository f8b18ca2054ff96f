"""Seconds from the start of the process to the end of the first training step, beside a peft + transformers script.

Both load the same folder of safetensors, bf16, and take the same step. Graft's clock stops when it reports the step.
"""

import subprocess
import time

from support import Peer, converted_model, in_turn, long_rows, lora_settings, step_words, train_command


def measure(folder, rounds):
    data, ids = long_rows(folder)
    model = converted_model()

    def graft():
        words = step_words("bfloat16")
        output = folder / f"start-{time.time_ns()}"
        command = train_command(data, output, *words, model=model, settings=lora_settings(), steps=1)
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if line.startswith("step 1/1"):
                    seconds = time.perf_counter() - begin
            # The process goes on to write the adapter; it ends before the peer's turn.
        return seconds

    def peft():
        with Peer("training.step_server", model=model, ids=ids, dtype="bfloat16") as peer:
            peer.ask(steps=1)
            return time.perf_counter() - peer.started

    # Files are read from the disk once before the clock runs.
    graft()
    ours, theirs = in_turn(rounds, graft, peft)
    return {"start": {"pairs": list(zip(ours, theirs))}}


MEASUREMENTS = {"start": measure}
