"""The tests' oracle: one process that answers requests about what the reference libraries compute.

A request is one JSON line on standard input, {"id": 7, "op": "models.logits", ...arguments}; the answer is one JSON
line on standard output, {"id": 7, "ok": result} or {"id": 7, "error": text}. `models.logits` is the function `logits`
of `models_oracle.py` beside this file, imported when first asked for. Large tensors travel in safetensors files that
the arguments name. The process ends when its standard input closes.
"""

import importlib
import json
import os
import sys
import traceback

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is asked is small, and threads that spin while they wait for each other starve the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What libraries print must not mix with the answers: they keep a descriptor of their own.
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
sys.stdout = sys.stderr
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def find(op):
    module, _, name = op.rpartition(".")
    if not module.isidentifier() or not name.isidentifier() or name.startswith("_"):
        raise LookupError(f"{op!r} is not the name of an operation, which reads like 'models.logits'")
    function = getattr(importlib.import_module(f"{module}_oracle"), name, None)
    if not callable(function):
        raise LookupError(f"{module}_oracle.py has no function {name}")
    return function


def answer(line):
    identifier = None
    try:
        request = json.loads(line)
        identifier = request.pop("id", None)
        result = find(request.pop("op"))(**request)
        return json.dumps({"id": identifier, "ok": result}, allow_nan=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of tokenizers' Rust is no Exception, and would end every test's oracle
        return json.dumps({"id": identifier, "error": traceback.format_exc()})


for line in sys.stdin:
    if line.strip():
        print(answer(line), file=answers, flush=True)
