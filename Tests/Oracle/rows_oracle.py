"""What Python's csv, json and gzip modules read and write, for the readers of data files.

Each operation takes paths; what the files hold is said at each."""

import csv
import gzip
import json
import random
import zlib


def csv_read(source, delimiter):
    """A table in text -> [rows as objects], or null where the module refuses it or a row is ragged."""
    csv.field_size_limit(1 << 30)
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
    except (csv.Error, UnicodeDecodeError):
        return None
    if not rows:
        return []
    if any(len(row) != len(rows[0]) for row in rows) or len(set(rows[0])) != len(rows[0]):
        return None
    return [dict(zip(rows[0], row)) for row in rows[1:]]


def csv_write(source, target, delimiter, quote_all, line_end, bom):
    """JSON array of objects with the same keys -> a table in text."""
    rows = json.load(open(source, encoding="utf-8"))
    with open(target, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
        writer = csv.DictWriter(
            file, list(rows[0]), delimiter=delimiter, quoting=quoting, lineterminator=line_end
        )
        writer.writeheader()
        writer.writerows(rows)


def json_write(source, target, indent, key):
    """JSON array of rows -> the same as a file with an array, or with an object that holds it under a key."""
    rows = json.load(open(source, encoding="utf-8"))
    value = rows if key is None else {"version": 1.5, "about": {"names": ["a", "]"]}, key: rows, "end": "]}"}
    json.dump(value, open(target, "w", encoding="utf-8"), indent=indent, ensure_ascii=bool(indent))


def gzip_write(source, target, members, level, padding):
    """A file -> the same gzip'd in several members, with zero bytes behind them."""
    data = open(source, "rb").read()
    cuts = sorted(random.Random(members).choices(range(len(data) + 1), k=members - 1))
    with open(target, "wb") as file:
        for start, end in zip([0, *cuts], [*cuts, len(data)]):
            file.write(gzip.compress(data[start:end], compresslevel=level))
        file.write(bytes(padding))


def gzip_read(paths):
    """gzip files -> for each its text, or null where the module refuses it."""
    result = []
    for path in paths:
        try:
            result.append(gzip.open(path).read().decode())
        except (OSError, EOFError, zlib.error, UnicodeDecodeError):
            result.append(None)
    return result


def gzip_bomb(target, megabytes):
    """A gzip file that unpacks to one line of so many megabytes."""
    with gzip.open(target, "wb", compresslevel=1) as file:
        file.write(b'{"text": "')
        for _ in range(megabytes):
            file.write(b"a" * (1 << 20))
        file.write(b'"}\n')
