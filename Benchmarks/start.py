"""Seconds from the start of the process to the end of the first training step, beside a peft + transformers script.

Both load the same folder of safetensors, bf16, and take the same step. Graft's clock stops when it reports the step.
"""

import time

from support import Peer, converted_model, in_turn, long_rows, lora_settings, run_steps, step_words, train_command


def measure(folder, rounds):
    data, ids = long_rows(folder)
    model = converted_model()

    def graft():
        words = step_words("bfloat16")
        output = folder / f"start-{time.time_ns()}"
        command = train_command(data, output, *words, model=model, settings=lora_settings(), steps=1)
        return run_steps(command)[1][-1]

    def peft():
        with Peer("training.step_server", model=model, ids=ids, dtype="bfloat16") as peer:
            answer = peer.ask(steps=1)
            return time.perf_counter() - peer.started, answer["since_start"]

    # Files are read from the disk once before the clock runs.
    graft()
    ours, theirs = in_turn(rounds, graft, peft)
    pairs, work = ([[a[clock], b[clock]] for a, b in zip(ours, theirs)] for clock in (0, 1))
    return {"start": {"pairs": pairs, "processor": work}}


MEASUREMENTS = {"start": measure}
