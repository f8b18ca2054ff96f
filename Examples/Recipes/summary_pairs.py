"""Makes preference rows of Factual-Summary-Pairs: python3 summary_pairs.py test.jsonl pairs

Reads rows {"article_sent", "correct_sent", "incorrect_sent"} and writes pairs/train.jsonl and pairs/test.jsonl with rows
{"prompt", "chosen", "rejected"} of messages. Rows whose summaries are equal are left out, and all rows of an article are on
one side.
"""

import hashlib
import json
import sys
from pathlib import Path

REQUEST = "Summarize in one sentence, with nothing that the text does not say:\n\n"


def pair(row):
    """The preference of a row; None where there is none."""
    chosen, rejected = row["correct_sent"].strip(), row["incorrect_sent"].strip()
    if chosen == rejected:
        return None
    return {
        "prompt": [{"role": "user", "content": REQUEST + row["article_sent"].strip()}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def is_held_out(row):
    """One article in five, whatever the order of the rows."""
    return hashlib.sha256(row["article_sent"].encode()).digest()[0] % 5 == 0


def main(source, folder):
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, held_out in [("train", False), ("test", True)]:
        chosen = [pair(row) for row in rows if is_held_out(row) == held_out]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in chosen if row]
        Path(folder, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder}/{name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
