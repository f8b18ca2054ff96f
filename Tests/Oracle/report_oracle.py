"""What independent readers find in the files that a run reports with, and what transformers' schedules are."""

import fcntl
import json
import math
import unicodedata
import xml.etree.ElementTree

import torch
from transformers import TrainingArguments, optimization


def schedule(shape, warmup_steps, total_steps, steps):
    """The share of the peak learning rate that each of the first steps uses, and those at the given steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if shape == "constant":
        scheduler = optimization.get_constant_schedule_with_warmup(optimizer, warmup_steps)
    else:
        make = getattr(optimization, f"get_{shape}_schedule_with_warmup")
        scheduler = make(optimizer, warmup_steps, total_steps)
    walked = []
    for _ in range(min(total_steps, 20)):
        walked.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return {"walked": walked, "at": [float(scheduler.lr_lambdas[0](step)) for step in steps]}


def warmup_steps(ratio, total_steps):
    """The steps of a warm-up that is a share of the run, as transformers' trainer counts them."""
    return TrainingArguments(output_dir="unused", warmup_steps=ratio).get_warmup_steps(total_steps)


def events(path):
    """Every event of a file as TensorBoard's own reader parses it; the reader checks both checksums of each record."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found = []
    for record in RawEventFileLoader(path).Load():
        event = Event.FromString(record)
        # Written again by protobuf's own encoder, a message without unknown or odd fields is byte for byte the same.
        assert event.SerializeToString(deterministic=True) == record
        found.append(
            {
                "kind": event.WhichOneof("what"),
                "wall_time": event.wall_time,
                "step": event.step,
                "version": event.file_version,
                "status": event.session_log.status,
                "scalars": [[value.tag, _plain(value.simple_value)] for value in event.summary.value],
            }
        )
    return found


def records(path):
    """The lengths of a TFRecord file's records, with all checksums computed here bit by bit."""
    data = open(path, "rb").read()
    lengths = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        body = data[at + 12 : at + 12 + length]
        assert len(body) == length
        assert int.from_bytes(data[at + 8 : at + 12], "little") == _masked_crc(data[at : at + 8])
        assert int.from_bytes(data[at + 12 + length : at + 16 + length], "little") == _masked_crc(body)
        lengths.append(length)
        at += 16 + length
    assert at == len(data)
    return lengths


def _masked_crc(data):
    # A division of polynomials over GF(2), highest power first; CRC-32C reflects each byte and the remainder.
    value = 0
    for index, byte in enumerate(data):
        byte ^= 0xFF if index < 4 else 0
        value = value << 8 | int(f"{byte:08b}"[::-1], 2)
    bits = 8 * len(data)
    if len(data) < 4:
        raise ValueError("too short for the initial remainder")
    value <<= 32
    for place in range(bits + 31, 31, -1):
        if value >> place & 1:
            value ^= 0x11EDC6F41 << (place - 32)
    crc = int(f"{value:032b}"[::-1], 2) ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def curves(folder):
    """The curves that TensorBoard shows for a folder: per tag the steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(folder)
    accumulator.Reload()
    return {
        tag: [[event.step, _plain(event.value)] for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def json_lines(path):
    """The objects of a file of JSON lines, read strictly; numbers that are not finite come as their `repr`."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    text = open(path, encoding="utf-8").read()
    assert text == "" or text.endswith("\n")
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [{key: _plain(float(value)) for key, value in line.items()} for line in lines]


def svg(path):
    """The elements of an SVG file: per kind the attributes and the text of each."""
    space = "{http://www.w3.org/2000/svg}"
    found = {}
    for element in xml.etree.ElementTree.parse(path).getroot().iter():
        kind = element.tag.removeprefix(space)
        found.setdefault(kind, []).append({**element.attrib, "words": element.text or ""})
    return found


def widths(texts):
    """The terminal columns of texts by Unicode's table of East Asian widths; only for texts without emoji."""
    return [sum(_width(character) for character in text) for text in texts]


def _width(character):
    if unicodedata.category(character) in ("Mn", "Me", "Cc", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _plain(value):
    return value if math.isfinite(value) else repr(value)


def can_lock(path):
    """Whether another process can take the lock of a file."""
    with open(path, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
