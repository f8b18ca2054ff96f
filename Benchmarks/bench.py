"""Measures Graft beside its peers, alternately in one run, and prints one table of ratios, bars and aims.

    make bench [ROWS=training,decoding] [ROUNDS=5]
    make bench-quick

ROWS chooses measurements by how their names begin. The rows are merged into docs/benchmarks.json, and docs/benchmarks.md
and its chart are written from that. The quick form needs no more than the test oracles, writes nothing, and fails where
even the best round is beyond a floor far from the bar.
"""

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import decoding
import epoch
import methods
import report
import roofline
import scaling
import start
import training
from figures import FIGURES
from support import GRAFT, machine, versions

MEASUREMENTS = {}
for module in (training, epoch, roofline, decoding, methods, start, scaling):
    MEASUREMENTS.update(module.MEASUREMENTS)
# Rounds where fewer than the usual number are affordable.
ROUNDS = {"scaling": 2}
QUICK = ["start", "training-bf16", "lorta", "capaboost-lora", "training-fp32"]
QUICK_ROUNDS, QUICK_SECONDS = 2, 160


def measure(name, folder, rounds, facts):
    begin, load = time.perf_counter(), os.getloadavg()[0]
    rows = MEASUREMENTS[name](folder, rounds)
    common = {
        "load": [load, os.getloadavg()[0]],
        "measurement_seconds": time.perf_counter() - begin,
        "date": datetime.date.today().isoformat(),
        **facts,
    }
    return {key: {**row, **common} for key, row in rows.items()}


def chosen(words):
    wanted = [name for name in MEASUREMENTS if not words or any(name.startswith(word) for word in words)]
    for word in words:
        if not any(name.startswith(word) for name in MEASUREMENTS):
            sys.exit(f"bench: no measurement begins with {word!r}; there are {', '.join(MEASUREMENTS)}")
    return wanted


def full(words, rounds):
    facts = {"machine": machine(), "versions": {**versions(), "llama-cpp-python": decoding.VERSION}}
    names = chosen(words)
    rows = {}
    for name in names:
        count = rounds or ROUNDS.get(name.split("-")[0], 5)
        print(f"{name}: {count} rounds ...", file=sys.stderr, flush=True)
        # A folder each: a run leaves megabytes behind.
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, Path(folder), count, facts)
        rows.update(found)
        # Kept at once, so that a run that is broken off has measured what it says.
        report.write_page({**report.stored_rows(), **rows})
    print(report.table(rows))
    print("\n".join(report.conditions(rows)))


class TimeIsOver(Exception):
    pass


def measure_quickly(facts):
    """Rows of what can be measured in QUICK_SECONDS; a busy machine measures less."""

    def stop(*_):
        raise TimeIsOver

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(QUICK_SECONDS)
    rows = {}
    try:
        for name in QUICK:
            with tempfile.TemporaryDirectory() as folder:
                rows.update(measure(name, Path(folder), 1 if name == "start" else QUICK_ROUNDS, facts))
    except TimeIsOver:
        print(f"The machine is busy: after {QUICK_SECONDS} s the rest from {name} on is left out.")
    signal.alarm(0)
    return rows


def quick():
    rows = measure_quickly({"machine": machine(), "versions": versions()})
    print(report.table(rows))
    print("\n".join(report.conditions(rows)))
    failures = []
    for name, row in rows.items():
        figure = FIGURES[name]
        if figure.floor is not None and not figure.reaches(figure.best(row), figure.floor):
            failures.append(f"{figure.title}: {figure.best(row):.2f}, far beyond its bar of {figure.bound(figure.bar)}")
    if failures:
        sys.exit("bench-quick: " + "; ".join(failures))
    print("bench-quick: no ratio is far beyond its bar")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="measurements, by how their names begin, with commas")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (default: 5; scaling 2)")
    parser.add_argument("--quick", action="store_true", help="a few minutes' check against floors")
    options = parser.parse_args()
    if not GRAFT.exists():
        sys.exit(f"bench: {GRAFT} is not there; run make build")
    if options.quick:
        quick()
    else:
        full([word for word in options.rows.split(",") if word], options.rounds)


if __name__ == "__main__":
    main()
