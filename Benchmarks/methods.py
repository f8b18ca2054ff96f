"""A step of LoRTA and of CapaBoost beside a step of Graft's own LoRA of the same rank on the same layers."""

import functools

from support import RANK, in_turn, long_rows, median, step_words, train

WARM_UP, STEPS = 2, 5
ATTENTION = 'target_modules=["q_proj","k_proj","v_proj","o_proj"]'
# method: its settings, and those of LoRA on the same layers.
CASES = {
    "lorta": ([f"r={RANK}"], [f"r={RANK}", ATTENTION]),
    "capaboost-lora": ([f"r={RANK}", "num_layer=2", "target_modules=all-linear"], [f"r={RANK}", "target_modules=all-linear"]),
}  # fmt: skip


def measure(method, folder, rounds):
    data, _ = long_rows(folder)

    def step(method, settings):
        found = train(folder, data, *step_words("bfloat16"), method=method, settings=settings, steps=STEPS)
        return [median(found[clock][WARM_UP:]) for clock in ("seconds", "processor")]

    own, lora = CASES[method]
    ours, theirs = in_turn(rounds, lambda: step(method, own), lambda: step("lora", lora))
    pairs, work = ([[a[clock], b[clock]] for a, b in zip(ours, theirs)] for clock in (0, 1))
    return {method: {"pairs": pairs, "processor": work}}


MEASUREMENTS = {method: functools.partial(measure, method) for method in CASES}
