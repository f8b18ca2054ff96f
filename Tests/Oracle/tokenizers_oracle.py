"""Tokenizers and chat templates as the reference libraries do them.

The tokenizer of a GGUF file is built from its vocabulary with the pre-tokenizer that the file names: transformers' own
conversion loses the step that splits digits.
"""

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers


@functools.lru_cache(maxsize=2)
def _from_gguf(path):
    import gguf

    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = {
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "gpt-2": byte_level,
    }
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = steps[fields["tokenizer.ggml.pre"].contents()]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
    return tokenizer


@functools.lru_cache(maxsize=4)
def _from_file(path, stamp):
    return Tokenizer.from_file(path)


def _tokenizer(path):
    if path.endswith(".gguf"):
        return _from_gguf(path)
    path = Path(path) / "tokenizer.json"
    return _from_file(str(path), path.stat().st_mtime_ns)


def _words(numbers):
    """Numbers as one string: far shorter to send and to read than a list."""
    return " ".join(map(str, numbers))


def encode(path, lines, ranges=True):
    """For each line the ids, and where each token begins and ends in bytes (of whole characters)."""
    encodings = _tokenizer(path).encode_batch(lines, add_special_tokens=False)
    result = []
    for line, encoding in zip(lines, encodings):
        answer = {"ids": _words(encoding.ids)}
        if ranges:
            places = [0]
            for character in line:
                places.append(places[-1] + len(character.encode()))
            answer["ranges"] = _words(places[bound] for offsets in encoding.offsets for bound in offsets)
        result.append(answer)
    return result


def encode_whole(path, lines, pairs=None):
    """For each line, or pair of lines, the ids, types and places in bytes with the tokens that stand around them."""
    inputs = list(zip(lines, pairs)) if pairs else lines
    result = []
    for number, encoding in enumerate(_tokenizer(path).encode_batch(inputs, add_special_tokens=True)):
        places = []
        for text in (lines[number], pairs[number] if pairs else ""):
            places.append([0])
            for character in text:
                places[-1].append(places[-1][-1] + len(character.encode()))
        bounds = []
        for offsets, sequence in zip(encoding.offsets, encoding.sequence_ids):
            # A token that belongs to no text is at 0.
            bounds.extend(places[sequence or 0][bound] for bound in offsets)
        result.append({"ids": _words(encoding.ids), "types": _words(encoding.type_ids), "ranges": _words(bounds)})
    return result


def normalize(path, lines):
    """The lines as the normalizer of a tokenizer leaves them."""
    normalizer = _tokenizer(path).normalizer
    return [normalizer.normalize_str(line) for line in lines]


def split(path, lines):
    """Where the pre-tokenizer of a tokenizer cuts each line, in bytes."""
    pre_tokenizer = _tokenizer(path).pre_tokenizer
    result = []
    for line in lines:
        places = [0]
        for character in line:
            places.append(places[-1] + len(character.encode()))
        result.append(_words(places[bound] for _, piece in pre_tokenizer.pre_tokenize_str(line) for bound in piece))
    return result


def replace_bytes(samples):
    """What bytes read as text, with U+FFFD for what is no UTF-8."""
    return [bytes(sample).decode(errors="replace") for sample in samples]


def accepts(patterns):
    """Whether each text is a regular expression for the reference."""
    from tokenizers import Regex

    result = []
    for pattern in patterns:
        try:
            Regex(pattern)
            result.append(True)
        except Exception:
            result.append(False)
    return result


def decode(path, sequences, skip_special_tokens):
    tokenizer = _tokenizer(path)
    return [tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]


def folder(path, lines, messages):
    """What AutoTokenizer makes of a written folder: ids, decoded text, roles and the rendered conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
    return {
        "ids": [_words(row) for row in ids],
        "with_special": [_words(row) for row in tokenizer(lines)["input_ids"]],
        "decoded": [tokenizer.decode(row) for row in ids],
        "decoded_plain": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "roles": {name: getattr(tokenizer, name + "_token_id") for name in ("bos", "eos", "pad", "unk")},
        "special": sorted(tokenizer.all_special_ids),
        "size": len(tokenizer),
        "chat": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) if messages else "",
        "chat_ids": _words(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]) if messages else "",
    }


def train(path, lines, size, pre_tokenizer, added, options):
    """Trains a byte-level BPE tokenizer on the lines and writes it to a folder, with the given components."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(**pre_tokenizer["byte_level"])
    steps = [pre_tokenizers.Digits(individual_digits=value) for value in pre_tokenizer["digits"]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps + [byte_level]) if steps else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if options.pop("whole_alphabet", True) else []
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<unk>"], show_progress=False)
    )
    for token in added:
        special = token.pop("special")
        token = AddedToken(**token, special=special)
        tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    state = json.loads(tokenizer.to_str())
    state["model"].update(options)
    Path(path).mkdir(parents=True, exist_ok=True)
    (Path(path) / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def compose(path, lines, size, components, options, added=()):
    """Trains a BPE tokenizer with the components of a tokenizer.json on the lines and writes it to a folder.

    `options` overrides the model's fields; with byte fallback the tokens of all bytes are put into the vocabulary.
    """
    model = {"type": "BPE", "vocab": {}, "merges": [], **options, "byte_fallback": False, "unk_token": None}
    state = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None, **components, "model": model,
    }
    processor = state.pop("post_processor")
    tokenizer = Tokenizer.from_str(json.dumps({**state, "post_processor": None}))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if options.get("byte_level", False) else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        show_progress=False,
        **{name: options[name] for name in ("continuing_subword_prefix", "end_of_word_suffix") if name in options},
    )
    tokenizer.train_from_iterator(lines, trainer)
    state = json.loads(tokenizer.to_str())
    state["post_processor"] = processor
    options.pop("byte_level", None)
    state["model"].update(options)
    if options.get("byte_fallback"):
        for byte in range(256):
            vocabulary = state["model"]["vocab"]
            vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    for token in added:
        special = token.pop("special")
        token = AddedToken(**token, special=special)
        tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    Path(path).mkdir(parents=True, exist_ok=True)
    (Path(path) / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def render(cases):
    """Renders templates in the environment of transformers: the text of each case, or the class of its error."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    results = []
    for case in cases:
        try:
            results.append({"text": _compile_jinja_template(case["source"]).render(**case["variables"])})
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    return results
