"""The figures that are measured, and what each is to reach.

`floor` is the ratio beyond which `make bench-quick` fails: far from any bar, and safe on a machine that others use too.
"""

from dataclasses import dataclass

from support import median

PEFT, LLAMA, LORA = "peft + transformers", "llama.cpp", "LoRA of Graft"


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    unit: str
    against: str
    bar: float | None = None
    aim: float | None = None
    floor: float | None = None
    less: bool = False  # whether less is better
    digits: int = 0

    def ratios(self, row, clock="pairs"):
        return [ours / theirs for ours, theirs in row[clock]]

    def ratio(self, row, clock="pairs"):
        """The median of the rounds' ratios: each pair was measured one after the other."""
        return median(self.ratios(row, clock))

    def reaches(self, ratio, bound):
        return ratio <= bound if self.less else ratio >= bound

    def best(self, row):
        return min(self.ratios(row)) if self.less else max(self.ratios(row))

    def bound(self, value):
        if value is None:
            return "-"
        return ("≤ " if self.less else "≥ ") + f"{value:.2f}"

    def verdict(self, row):
        if self.bar is None:
            return ""
        if not self.reaches(self.ratio(row), self.bar):
            return "no"
        return "aim" if self.aim is not None and self.reaches(self.ratio(row), self.aim) else "bar"


FIGURES = {
    figure.name: figure
    for figure in [
        Figure("training-bf16", "training, bf16", "tokens/s", PEFT, 4.0, 6.0, floor=1.0),
        Figure("training-fp32", "training, fp32", "tokens/s", PEFT, 1.7, 2.2, floor=0.85),
        Figure("memory-bf16", "peak memory of it, bf16", "GB", PEFT, 0.40, 0.25, floor=0.8, less=True, digits=2),
        Figure("memory-fp32", "peak memory of it, fp32", "GB", PEFT, less=True, digits=2),
        Figure("epoch", "epoch of 1,000 rows, bf16", "examples/s", "Trainer + peft", 6.0, 10.0, digits=1),
        Figure("roofline-bf16", "share of the products' rate, bf16", "tokens/s", "its products alone", 0.50, 0.70),
        Figure("roofline-fp32", "share of the products' rate, fp32", "tokens/s", "its products alone", 0.75, 0.90),
        Figure("decoding", "greedy decoding, Q4_1", "tokens/s", LLAMA, 0.8, 1.5),
        Figure("prompt", "prompt of 512 tokens, Q4_1", "tokens/s", LLAMA, 2.0, 8.0),
        Figure("first-token", "start to first token, Q4_1", "s", LLAMA, less=True, digits=2),
        Figure("lorta", "step of LoRTA, bf16", "s", LORA, 1.1, 1.0, floor=2.2, less=True, digits=2),
        Figure("capaboost-lora", "step of CapaBoost, d = 2, bf16", "s", LORA, 1.3, 1.1, floor=2.6, less=True, digits=2),
        Figure("start", "start to first step done, bf16", "s", PEFT, 0.15, 0.05, floor=0.6, less=True, digits=2),
        Figure("scaling-rank", "growth over rank 1 to 64", "", "multiplications", 1.1, 1.0, less=True, digits=2),
        Figure("scaling-sequence", "growth over 128 to 4096 tokens", "", "tokens", 1.1, 1.0, less=True, digits=2),
        Figure("scaling-batch", "growth over 1 to 32 rows", "", "tokens", 1.1, 1.0, less=True, digits=2),
        Figure("scaling-layers", "growth over 1 to 30 layers", "", "layers", 1.1, 1.0, less=True, digits=2),
    ]
}
