#!/usr/bin/env bash
# Measures Graft beside peft + transformers; words are passed on to Benchmarks/training.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec .graft/oracle/bin/python Benchmarks/training.py "$@"
