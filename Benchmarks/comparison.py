"""Compares methods on one real task and writes docs/comparison.md: `make comparison`.

The task is ASDiv's word problems: the model reads passage and question and is to go on with the answer. Every option is one
of `graft compare`, so the page can be made for any other task with that command alone.
"""

import argparse
import json
import subprocess
from pathlib import Path

from support import DATA, GRAFT, MODEL, ROOT, every_method, machine, versions

def rows(count, held_out, folder):
    """Writes the first rows to learn from and the next ones to judge by."""
    lines = (DATA / "ASDiv/test.jsonl").read_text().splitlines()
    chosen = [json.loads(line) for line in lines if line.strip()][: count + held_out]
    paths = []
    for name, part in [("train", chosen[:count]), ("test", chosen[count:])]:
        path = folder / f"{name}.jsonl"
        path.write_text(
            "".join(
                json.dumps(
                    {
                        "prompt": f"{row['passage']}\nQuestion: {row['question']}\nAnswer:",
                        "completion": f" {row['answer']}",
                    }
                )
                + "\n"
                for row in part
            )
        )
        paths.append(path)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", help="names with commas between them; without, all of `graft methods`")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--learning-rates", default="5e-4,5e-3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/comparison")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    train, test = rows(options.rows, options.held_out, options.output)
    subprocess.run(
        [
            GRAFT, "compare", "--methods", options.methods or ",".join(every_method()), "--model", MODEL, "--data", train, "--eval-data", test,
            "--steps", str(options.steps), "--batch-size", "4", "--packing", "--schedule", "constant",
            "--learning-rates", options.learning_rates, "--seeds", str(options.seeds), "--output", options.output,
        ],
        check=True,
    )
    write(options)


def write(options):
    """The page: what was done, and the table as it came out."""
    table = (options.output / "comparison.md").read_text()
    host = machine()
    (ROOT / "docs/comparison.md").write_text(
        f"""# Methods side by side

Written by `make comparison`, as found: SmolLM2-135M-Instruct on ASDiv's word problems, {options.rows} rows to learn from and
{options.held_out} held-out ones. Each method is trained for {options.steps} steps of 4 packed rows: first with the learning rates
{options.learning_rates} (and fivefold beyond an end where that is the best, at most twice) on four fifths of the rows, judged by the
rest; then with the best one and {options.seeds} seeds on all of them. So few steps show what a method learns quickly, not what it can learn:
differences of the order of the spread mean nothing, and a method that needs more steps is at a disadvantage. Hyper-parameters are the
defaults of `graft methods NAME`, which differ in how many values they train.

`loss` is that of the answers' tokens (mean over seeds), `spread` its standard deviation; `peak memory` and `s/step` are medians over
processes of their own, which shared the machine with other work. PPT is `exp(-loss)` less what trained values cost. `graft compare` also writes a page
with curves and the Pareto front, `comparison.html`.

{table}
Methods of `graft methods` that are not in the table were not trained. {host['processor']}, {host['cores']} cores; \
{", ".join(f"{name} {number}" for name, number in versions().items() if name in ("graft", "torch"))}.
"""
    )


if __name__ == "__main__":
    main()
