"""The process of a `support.Peer`: calls a function of a module of this folder, then answers a question a line."""

import importlib
import json
import sys


def main():
    module, function = sys.argv[1].split(".")
    answer = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    for line in sys.stdin:
        print("answer " + json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
