"""Vocabulary files of every kind, recognized by their content, and tokenizer.json written from them.

tokenizer.json is the format of Hugging Face's tokenizers library (version 1.0 of the format; docs at
https://huggingface.co/docs/tokenizers): normalizer, cut, model, decoder, each an entry of its own. Files that say less
(vocab.txt, vocab.json with merges.txt, tiktoken ranks, CLIP's merges, GGUF) are read as the tokenizer.json that says the same;
SentencePiece models, llama2.c's tokenizer.bin and RWKV's word list keep their own way of encoding. Nothing is ever unpickled.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import regex

from llmlab.reference.errors import InputError
from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers import sentencepiece
from llmlab.reference.tokenizers._byte_level import GPT2, LLAMA3, QWEN2, byte_order, to_characters
from llmlab.reference.tokenizers._gguf import metadata
from llmlab.reference.tokenizers._json_models import model_of
from llmlab.reference.tokenizers._steps import Reader
from llmlab.reference.tokenizers.bpe import END_OF_WORD, zipf_words
from llmlab.reference.tokenizers.pretokenize import is_white_space

MOST_BYTES = 1 << 28
"""A file above 256 MiB, or a compressed one that unpacks to more, is refused."""


Search = tuple[regex.Pattern[str] | None, Mapping[str, Mapping[str, Any]]]
"""A pattern that finds tokens in a text, and their entries."""


class Tokenizer(Protocol):
    """What every file becomes."""

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of a text, without the special tokens that surround one."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens included as their text only where the format says so."""

    def to_json(self) -> dict[str, Any]:
        """The same as a tokenizer.json."""


@dataclass(frozen=True, eq=False)
class JsonTokenizer:
    """A tokenizer.json.

    Attributes:
        spec: its content.
        path: named in errors.
    """

    spec: Mapping[str, Any]
    path: Path = Path("tokenizer.json")

    def __post_init__(self) -> None:
        _ = self._parts, self._tokens  # a malformed file is refused when it is read

    @cached_property
    def _parts(self) -> tuple[Any, Any, Callable[[str], list[int]], dict[str, int], Any]:
        reader = Reader(self.path)
        encode, ids = model_of(self.path, self.spec.get("model"))
        normalizer, cut = reader.normalizer(self.spec.get("normalizer")), reader.cut(self.spec.get("pre_tokenizer"))
        return normalizer, cut, encode, ids, reader.decoder(self.spec.get("decoder"))

    @cached_property
    def added(self) -> list[Mapping[str, Any]]:
        """Tokens that are looked for in the text before anything is cut."""
        entries = self.spec.get("added_tokens") or []
        for entry in entries:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str) or "id" not in entry:
                raise InputError(self.path, "added_tokens", entry, "must have an id and a content")
            if not isinstance(entry["id"], int) or entry["id"] < 0:
                raise InputError(self.path, "added_tokens.id", entry["id"], "must be a whole number from 0 on")
        ids = self._parts[3]  # a token the model has too keeps the model's id
        return [{**entry, "id": ids.get(entry["content"], entry["id"])} for entry in entries if entry["content"]]

    @cached_property
    def _tokens(self) -> dict[int, str]:
        """Id -> token; the library decodes a normalized added token to its normalized text."""
        tokens = {number: token for token, number in self._parts[3].items()}
        for table in self._searches:
            tokens |= {entry["id"]: content for content, entry in table[1].items()}
        return tokens

    @cached_property
    def _searches(self) -> tuple[Search, Search]:
        """Two patterns with their tokens: those found in the text as it is, and those found in the normalized text."""
        plain, normalized = {}, {}
        for entry in self.added:
            if entry.get("normalized", not entry.get("special")):
                normalized[self._parts[0](entry["content"])] = entry
            else:
                plain[entry["content"]] = entry
        return (_any_of(plain), plain), (_any_of(normalized), normalized)

    def pieces(self, text: str | bytes) -> Iterator[str | int]:
        """What the model sees, one by one; added tokens come out as their id."""
        byte_level = '"ByteLevel"' in self._outline
        if isinstance(text, bytes) and byte_level:
            text = text.decode("utf-8", "surrogateescape")
        else:
            text = sentencepiece.readable(text)
        normalizer, cut, *_ = self._parts
        at_start = True
        for part in _found(text, *self._searches[0]):
            inner: Iterable[str | int] = [part] if isinstance(part, int) else _found(normalizer(part), *self._searches[1])
            for piece in inner:
                if isinstance(piece, int):
                    yield piece
                else:
                    yield from (one for one in cut(piece, at_start) if one)
                at_start = False

    @cached_property
    def _outline(self) -> str:
        return json.dumps([self.spec.get("normalizer"), self.spec.get("pre_tokenizer")])

    def encode(self, text: str | bytes, *, surround: bool = False) -> list[int]:
        """Return the ids of a text; with `surround`, what the post-processor puts around one too."""
        encode = self._parts[2]
        ids = [number for piece in self.pieces(text) for number in ([piece] if isinstance(piece, int) else encode(piece))]
        if not surround:
            return ids
        around = Reader(self.path).template(self.spec.get("post_processor"), self._parts[3])
        return [number for part in around for number in (ids if part is None else part)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ids; an id that no token has is passed over, as the library does."""
        special = {entry["id"] for entry in self.added if entry.get("special")} if skip_special else set()
        tokens = [self._tokens[number] for number in ids if number in self._tokens and number not in special]
        return "".join(self._parts[4](tokens))

    def to_json(self) -> dict[str, Any]:
        """Its own content."""
        return {"version": "1.0", "truncation": None, "padding": None, **self.spec}


def _any_of(table: Mapping[str, Any]) -> regex.Pattern[str] | None:
    return regex.compile("|".join(map(regex.escape, sorted(table, key=len, reverse=True)))) if table else None


def _found(text: str, pattern: regex.Pattern[str] | None, table: Mapping[str, Any]) -> Iterator[str | int]:
    """Cut a text at added tokens: the leftmost, of those the longest; with the white space that a token takes along."""
    place = 0
    for match in pattern.finditer(text) if pattern else ():
        start, end = match.span()
        entry = table[match.group()]
        if entry.get("single_word") and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
            continue
        if start < place:
            continue
        while entry.get("lstrip") and start > place and is_white_space(text[start - 1]):
            start -= 1
        while entry.get("rstrip") and end < len(text) and is_white_space(text[end]):
            end += 1
        if start > place:
            yield text[place:start]
        yield entry["id"]
        place = end
    if place < len(text):
        yield text[place:]


def _is_word(character: str) -> bool:
    return regex.match(r"\w", character) is not None


@dataclass(frozen=True, eq=False)
class PieceTokenizer:
    """A SentencePiece model, or a list that encodes as one does."""

    model: sentencepiece.Model

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of a text."""
        return sentencepiece.encode(self.model, text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids."""
        return sentencepiece.decode(self.model, ids)

    def to_json(self) -> dict[str, Any]:
        """A BPE model as published conversions write it; control pieces become special tokens, which are then found in text.

        Raises:
            InputError: it has rules of normalization, user-defined pieces or a unigram model, which the library treats
                differently from SentencePiece, so no tokenizer.json gives the same ids.
        """
        model = self.model
        for trait, why in (
            (model.kind == "unigram", "a unigram model, which sentencepiece sums in float32 and tokenizers in float64"),
            (model.charsmap is not None, "rules, of which sentencepiece takes the longest match and tokenizers the shortest"),
            (sentencepiece.USER_DEFINED in model.types, "user-defined pieces, which would start a new word in tokenizers"),
            (model.space_after or not model.escape_spaces, "spaces kept in a way tokenizers has not"),
        ):
            if trait:
                raise InputError(model.name, "tokenizer.json", model.kind, f"cannot say the same: the model has {why}")
        ends = r"(?<![\s\S]) +| +(?![\s\S])"  # ^ and $ would match at every line in the library's language
        squeezes = [_replace({"Regex": ends}, ""), _replace({"Regex": " {2,}"}, " ")] if model.squeeze_spaces else []
        prefix = [{"type": "Prepend", "prepend": sentencepiece.SPACE}] if model.dummy_prefix else []
        control = [number for number, kind in enumerate(model.types) if kind == sentencepiece.CONTROL]
        merges = sorted(
            ((rank, number, pair) for pair, (rank, number) in model.symbols[1].items()), key=lambda entry: entry[:2]
        )
        texts = {number: text for text, number in model.symbols[0].items()}
        decoders = [_replace({"String": sentencepiece.SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
        decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.dummy_prefix else []
        return _spec(
            model={
                "type": "BPE",
                "vocab": {piece: number for number, piece in enumerate(model.pieces)},
                "merges": [
                    [texts[left], texts[right]] for _, _, (left, right) in merges if max(left, right) < len(model.pieces)
                ],
                "unk_token": model.pieces[model.unknown],
                "fuse_unk": True,
                "byte_fallback": model.byte_fallback,
            },
            normalizer=_sequence("normalizers", [*squeezes, *prefix, _replace({"String": " "}, sentencepiece.SPACE)]),
            decoder=_sequence("decoders", decoders),
            added=[_added_token(number, model.pieces[number], special=True) for number in control],
        )


def _sequence(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", name: steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@dataclass(frozen=True, eq=False)
class GreedyTokenizer:
    """RWKV's word list: at each byte the longest word that matches."""

    ids: Mapping[bytes, int]
    path: Path

    @cached_property
    def _by_start(self) -> dict[bytes, list[int]]:
        """First two bytes -> lengths of the words that start so, longest first."""
        lengths: dict[bytes, set[int]] = {}
        for word in self.ids:
            lengths.setdefault(word[:2], set()).add(len(word))
        return {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of a text.

        Raises:
            ValueError: a byte no word starts with.
        """
        raw = text if isinstance(text, bytes) else sentencepiece.readable(text).encode()
        found, place = [], 0
        while place < len(raw):
            lengths = (*self._by_start.get(raw[place : place + 2], ()), *self._by_start.get(raw[place : place + 1], ()))
            length = next((length for length in lengths if raw[place : place + length] in self.ids), 0)
            if not length:
                raise ValueError(f"{self.path.name} has no word for the byte {raw[place]}")
            found.append(self.ids[raw[place : place + length]])
            place += length
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; 0, the end of a text, is nothing."""
        return b"".join(self._words[number] for number in ids if number).decode("utf-8", "replace")

    @cached_property
    def _words(self) -> dict[int, bytes]:
        return {number: word for word, number in self.ids.items()}

    def to_json(self) -> dict[str, Any]:
        """Refuse: tokenizer.json has no model that takes the longest word of bytes.

        Raises:
            InputError: always.
        """
        raise InputError(self.path, "tokenizer.json", "greedy words", "cannot say the same: it has no such model")


# Recognizing files


def load_tokenizer(path: str | Path, *, merges: str | Path | None = None, pattern: str | None = None) -> Tokenizer:
    """Read a vocabulary file, or a folder with one, whatever its name; its content says what it is.

    `merges` names the merges of a vocab.json, by default `merges.txt` or `NAME.merges.txt` beside it. tiktoken's files do not
    say how text is cut: `pattern` does, by default GPT-2's for up to 51,000 ranks, else that of cl100k and Llama 3. vocab.txt
    does not say whether text is lowered: it is unless some piece has a capital letter.

    Raises:
        InputError: no such file, over 256 MiB, none of the formats, or malformed; one line with file, field and value.
    """
    path = Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise InputError(path, "", path.name, f"holds none of {', '.join(names)}")
        path = found
    data = _read(path)
    if data[:2] == b"\x1f\x8b":
        return _clip(path, _unzipped(path, data))
    if data[:4] == b"GGUF":
        return _gguf(path, data)
    if data[:2] == b"PK" or data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(path, "", path.name, "is a pickle or an archive, which is never opened")
    text = _as_text(data)
    if text is None:
        return PieceTokenizer(_llama2c(path, data) or sentencepiece.parse_model(data, name=str(path)))
    if text.lstrip()[:1] == "{":
        return _json_file(path, text, merges)
    first = text.split("\n", 1)[0]
    if regex.fullmatch(r"[A-Za-z0-9+/]+=* \d+\r?", first):
        return _tiktoken(path, text, pattern)
    if regex.fullmatch(r"""\d+ b?['"].*['"] \d+\r?""", first):
        return _rwkv(path, text)
    return _vocab_txt(path, text)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(path, "size", path.stat().st_size, f"is over the limit of {MOST_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from error


def _as_text(data: bytes) -> str | None:
    if b"\0" in data[:4096]:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _unzipped(path: Path, data: bytes) -> str:
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(data, MOST_BYTES)
        if unpacker.unconsumed_tail:
            raise InputError(path, "size", len(content), f"unpacks to more than {MOST_BYTES} bytes")
        return content.decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise InputError(path, "", path.name, f"is no compressed text: {error}") from error


def _json_file(path: Path, text: str, merges: str | Path | None) -> Tokenizer:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(path, "", path.name, f"is not valid JSON: {error}") from error
    if isinstance(content.get("model"), Mapping):  # a vocab.json may well have a token "model"
        return JsonTokenizer(content, path)
    if wrong := [token for token, number in content.items() if not isinstance(number, int)]:
        raise InputError(path, wrong[0], content[wrong[0]], "neither a tokenizer.json with a model nor tokens with ids")
    beside = [path.with_name("merges.txt"), path.with_name(f"{path.stem}.merges.txt")]
    given = Path(merges) if merges else next((one for one in beside if one.is_file()), beside[0])
    lines = (_as_text(_read(given)) or "").split("\n")
    pairs = [line.removesuffix("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    return JsonTokenizer(_byte_level(content, pairs, _gpt2_cut()), path)


# From each format to a tokenizer.json


def _spec(model: dict[str, Any], added: list[dict[str, Any]] | None = None, **steps: Any) -> dict[str, Any]:
    named = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added or [],
        **{name: steps.get(name) for name in named},
        "model": model,
    }


def _added_token(number: int, content: str, *, special: bool) -> dict[str, Any]:
    traits = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **traits, "special": special}


def _split_step(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytewise(*, cuts: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": cuts}


def _gpt2_cut() -> dict[str, Any]:
    return _bytewise(cuts=True)


def _byte_level(
    vocab: Any, merges: list[Any], cut: dict[str, Any], *, whole: bool = False, added: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "fuse_unk": False, "byte_fallback": False, "ignore_merges": whole}
    return _spec(model, added, pre_tokenizer=cut, decoder={"type": "ByteLevel"} | _bytewise(cuts=True))


def _tiktoken(path: Path, text: str, pattern: str | None) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=token != "=")] = int(rank)  # Whisper's last rank is a token without bytes
        except (ValueError, binascii.Error) as error:
            raise InputError(path, f"line {number}", line[:60], "is not a token in base64 and its rank") from error
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise InputError(path, "byte", missing[0], "has no token of its own")
    merges: list[list[str]] = []
    for whole, _ in sorted(ranks.items(), key=lambda entry: entry[1]):
        cuts = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        both = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        both.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[to_characters(left), to_characters(right)] for left, right in both]
    pattern = pattern or (GPT2 if len(ranks) <= 51_000 else LLAMA3)
    cut = _sequence("pretokenizers", [_split_step(pattern), _bytewise(cuts=False)])
    vocab = {to_characters(letters): rank for letters, rank in ranks.items()}
    return JsonTokenizer(_byte_level(vocab, merges, cut, whole=True), path)


def _vocab_txt(path: Path, text: str) -> Tokenizer:
    pieces = text.split("\n")
    while pieces and not pieces[-1]:
        pieces.pop()
    ids = {piece.removesuffix("\r"): number for number, piece in enumerate(pieces)}
    if "[UNK]" not in ids:
        raise InputError(path, "[UNK]", "absent", "none of the formats: a vocab.txt has this token")
    lowers = not any(regex.search("[A-Z]", piece) for piece in ids if not regex.fullmatch(r"\[.*\]", piece))
    return JsonTokenizer(_bert(ids, lowercase=lowers), path)


def _bert(ids: dict[str, int], *, lowercase: bool) -> dict[str, Any]:
    model: dict[str, Any] = {"type": "WordPiece", "vocab": ids, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    special = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in ids]
    return _spec(
        model,
        [_added_token(ids[name], name, special=True) for name in special],
        normalizer=normalizer | {"lowercase": lowercase},
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _clip(path: Path, text: str) -> Tokenizer:
    """CLIP's merges (Radford et al. 2021): the alphabet, the alphabet at the end of a word, the first 48,894 merges."""
    merges = [line.split() for line in text.split("\n")[1 : 49152 - 256 - 2 + 1] if line.strip()]
    if any(len(pair) != 2 for pair in merges):
        raise InputError(path, "merges", next(pair for pair in merges if len(pair) != 2), "must be two tokens")
    alphabet = [to_characters(bytes([byte])) for byte in byte_order()]
    tokens = [*alphabet, *(one + END_OF_WORD for one in alphabet), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(tokens)}
    special = [_added_token(ids[token], token, special=True) for token in tokens[-2:]]
    words = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    cut = _split_step(words) | {"behavior": "Removed", "invert": True}
    spec = _byte_level(ids, merges, _sequence("pretokenizers", [cut, _bytewise(cuts=False)]), added=special)
    spec["model"] |= {"end_of_word_suffix": END_OF_WORD, "unk_token": tokens[-1]}
    spec["normalizer"] = _sequence("normalizers", [{"type": "NFC"}, _replace({"Regex": r"\s+"}, " "), {"type": "Lowercase"}])
    return JsonTokenizer(spec, path)


_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")
_DIGITS = {"type": "Digits", "individual_digits": True}
GGUF_CUTS: Mapping[str, list[dict[str, Any]]] = {
    **{name: [_gpt2_cut()] for name in ("default", "gpt-2", "gpt2", "mpt", "roberta-bpe", "olmo", "jais")},
    **{name: [_DIGITS, _gpt2_cut()] for name in ("starcoder", "refact", "command-r", "smollm", "codeshell")},
    **{name: [_split_step(LLAMA3), _bytewise(cuts=False)] for name in ("llama-bpe", "llama3", "llama-v3", "dbrx")},
    **{name: [_split_step(QWEN2), _bytewise(cuts=False)] for name in ("qwen2", "deepseek-r1-qwen", "stablelm2")},
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        _gpt2_cut(),
        {"type": "Digits", "individual_digits": False},
        _split_step("[0-9][0-9][0-9]"),
    ],
    "deepseek-coder": [*map(_split_step, _CODER), _DIGITS, _bytewise(cuts=False)],
}
"""How text is cut for each name in `tokenizer.ggml.pre` that is known here."""


def _gguf(path: Path, data: bytes) -> Tokenizer:
    try:
        found = metadata(data)
    except (ValueError, struct.error, OverflowError) as error:
        raise InputError(path, "", path.name, f"is no GGUF file: {error}") from error
    kind, tokens = found.get("tokenizer.ggml.model"), found.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(path, "tokenizer.ggml.tokens", type(tokens).__name__, "must be a list of tokens")
    types = found.get("tokenizer.ggml.token_type") or [sentencepiece.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise InputError(path, "tokenizer.ggml.token_type", len(types), f"types for {len(tokens)} tokens")
    marked = (sentencepiece.CONTROL, sentencepiece.USER_DEFINED)
    added = [
        _added_token(number, tokens[number], special=one == sentencepiece.CONTROL)
        for number, one in enumerate(types)
        if one in marked
    ]
    if kind == "gpt2":
        pre = found.get("tokenizer.ggml.pre", "default")
        if pre not in GGUF_CUTS:
            raise InputError(path, "tokenizer.ggml.pre", pre, f"must be one of {', '.join(GGUF_CUTS)}")
        merges = [merge.split(" ") for merge in found.get("tokenizer.ggml.merges", [])]
        vocab = {token: number for number, token in enumerate(tokens)}
        return JsonTokenizer(_byte_level(vocab, merges, _sequence("pretokenizers", GGUF_CUTS[pre]), added=added), path)
    if kind == "bert":
        return JsonTokenizer(_bert(dict(_from_phantom_spaces(tokens, types)), lowercase=True), path)
    if kind in ("llama", "t5"):
        unknown = found.get("tokenizer.ggml.unknown_token_id", 0)
        # paddings of some files call themselves unknown as well
        types = [sentencepiece.CONTROL if one == sentencepiece.UNKNOWN else one for one in types]
        types = [sentencepiece.UNKNOWN if number == unknown else one for number, one in enumerate(types)]
        scores = found.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
        if len(scores) != len(tokens) or types.count(sentencepiece.UNKNOWN) != 1:
            raise InputError(path, "tokenizer.ggml.scores", len(scores), f"scores for {len(tokens)} tokens, one unknown")
        model = sentencepiece.Model(
            tuple(tokens),
            np.array(scores, np.float32),
            tuple(types),
            kind="bpe" if kind == "llama" else "unigram",
            byte_fallback=types.count(sentencepiece.BYTE) == 256,
            dummy_prefix=bool(found.get("tokenizer.ggml.add_space_prefix", True)),
            squeeze_spaces=bool(found.get("tokenizer.ggml.remove_extra_whitespaces", False)),
            name=str(path),
        )
        return PieceTokenizer(model)
    raise InputError(path, "tokenizer.ggml.model", kind, "must be gpt2, llama, t5 or bert")


def _from_phantom_spaces(tokens: list[str], types: list[int]) -> Iterator[tuple[str, int]]:
    """llama.cpp writes WordPiece with "▁" at the start of words and nothing before what goes on; BERT has it the other way."""
    for number, (token, kind) in enumerate(zip(tokens, types)):
        if kind == sentencepiece.CONTROL or kind == sentencepiece.UNKNOWN:
            yield token, number
        else:
            yield (token.removeprefix("▁") if token.startswith("▁") else "##" + token), number


def _llama2c(path: Path, data: bytes) -> sentencepiece.Model | None:
    """karpathy/llama2.c's tokenizer.bin: the longest token, then score, length and text of each; None if it is none."""
    pieces: list[str] = []
    scores: list[float] = []
    longest, at = int.from_bytes(data[:4], "little"), 4
    while at + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= longest or at + length > len(data):
            return None
        pieces.append(data[at : at + length].decode("utf-8", "replace").replace(" ", sentencepiece.SPACE))
        scores.append(score)
        at += length
    if at != len(data) or len(pieces) < 259 or pieces[0] != "<unk>" or pieces[3] != "<0x00>":
        return None
    kinds = [sentencepiece.UNKNOWN, *[sentencepiece.CONTROL] * 2, *[sentencepiece.BYTE] * 256]
    types = (*kinds, *[sentencepiece.NORMAL] * (len(pieces) - len(kinds)))
    named = (*pieces[:1], *(piece.strip("\n") for piece in pieces[1:3]), *pieces[3:])
    return sentencepiece.Model(named, np.array(scores, np.float32), types, "bpe", True, squeeze_spaces=False, name=str(path))


def _rwkv(path: Path, text: str) -> Tokenizer:
    ids: dict[bytes, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            word = ast.literal_eval(line[line.index(" ") + 1 : line.rindex(" ")])
            letters = word.encode() if isinstance(word, str) else bytes(word)
            if len(letters) != int(line[line.rindex(" ") :]):
                raise ValueError(f"{len(letters)} bytes")
            ids[letters] = int(line[: line.index(" ")])
        except (ValueError, SyntaxError, TypeError, MemoryError) as error:
            raise InputError(path, f"line {number}", line[:60], "is not an id, a quoted word and its bytes") from error
    return GreedyTokenizer(ids, path)


def write_tokenizer_json(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write what the tokenizers library reads and encodes alike.

    Raises:
        InputError: no tokenizer.json can give the same ids.
    """
    content = json.dumps(tokenizer.to_json(), ensure_ascii=False)
    Path(path).write_text(content, encoding="utf-8")


def use_tokenizer_json(content: str, text: str) -> dict[str, Any]:
    """Encode a text with the content of a tokenizer.json, with and without what surrounds it, and decode (format of 2020).

    Raises:
        InputError: the content is malformed.
    """
    tokenizer = JsonTokenizer(json.loads(content))
    ids = tokenizer.encode(text)
    return {"ids": ids, "surrounded": tokenizer.encode(text, surround=True), "decoded": tokenizer.decode(ids)}


_NORMALIZERS: tuple[Any, ...] = (
    None,
    {"type": "NFKC"},
    _sequence("normalizers", [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]),
    _sequence("normalizers", [{"type": "Prepend", "prepend": "▁"}, _replace({"String": " "}, "▁")]),
    _sequence("normalizers", [{"type": "Strip", "strip_left": True, "strip_right": False}, _replace({"Regex": r"\s+"}, " ")]),
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": False, "lowercase": True},
)
_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_CUTS: tuple[Any, ...] = (
    None,
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "BertPreTokenizer"},
    _sequence("pretokenizers", [{"type": "Punctuation", "behavior": "MergedWithNext"}, _DIGITS]),
    *({"type": "Split", "pattern": {"Regex": "[aeo]+| "}, "behavior": behavior, "invert": False} for behavior in _BEHAVIORS),
    {"type": "Split", "pattern": {"String": "t"}, "behavior": "MergedWithNext", "invert": True},
)
_DECODERS: tuple[Any, ...] = (
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    _sequence("decoders", [_replace({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]),
    _sequence("decoders", [{"type": "Fuse"}, {"type": "Strip", "content": "a", "start": 2, "stop": 0}]),
)


def _model_entry(rng: np.random.Generator, corpus: str) -> dict[str, Any]:
    """A made-up model of one of the kinds over the characters of a corpus and some of its stretches."""
    characters = sorted(set(corpus) | {"▁", "<", ">"})[:-1]
    cuts = {corpus[start : start + size] for start, size in zip(rng.integers(0, len(corpus), 60), rng.integers(2, 6, 60))}
    stretches = sorted(cuts - set(characters) - {""})
    kind = str(rng.choice(["BPE", "WordPiece", "Unigram", "WordLevel"]))
    if kind == "Unigram":
        scores = -rng.integers(16, 200, 1 + len(characters) + len(stretches)) / 16
        return {"type": kind, "unk_id": 0, "vocab": [[a, float(b)] for a, b in zip(["<unk>", *characters, *stretches], scores)]}
    if kind != "BPE":
        more = [f"##{piece}" for piece in (*characters, *stretches)] if kind == "WordPiece" else corpus.split()
        tokens = dict.fromkeys(["[UNK]", *characters, *stretches, *more])
        entry = {"type": kind, "unk_token": "[UNK]", "vocab": {token: number for number, token in enumerate(tokens)}}
        return entry | ({"continuing_subword_prefix": "##", "max_input_chars_per_word": 9} if kind == "WordPiece" else {})
    falls_back, fuses = bool(rng.integers(2)), bool(rng.integers(2))
    letters = [f"<0x{byte:02X}>" for byte in range(256)] if falls_back else []
    tokens, merges = dict.fromkeys(["<unk>", *letters, *characters]), []
    for _ in range(60):
        left, right = rng.choice([*tokens][1 + len(letters) :], 2)
        if left + right in corpus and [left, right] not in merges:
            merges.append([str(left), str(right)])
            tokens[str(left + right)] = None
    vocab = {token: number for number, token in enumerate(tokens)}
    return {
        "type": kind,
        "vocab": vocab,
        "merges": merges,
        "unk_token": "<unk>",
        "fuse_unk": fuses,
        "byte_fallback": falls_back,
    }


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    corpus = zipf_words(rng, 60, distinct=30)
    model = _model_entry(rng, corpus)
    size = len(model["vocab"])
    added = [_added_token(size, "[x]", special=True), _added_token(size + 1, "to", special=False)]
    added[0] |= {"lstrip": bool(rng.integers(2)), "rstrip": bool(rng.integers(2))}
    added[1] |= {"normalized": True, "single_word": bool(rng.integers(2))}
    around: dict[str, Any] = {
        "type": "TemplateProcessing",
        "pair": [],
        "special_tokens": {"[x]": {"id": "[x]", "ids": [size], "tokens": ["[x]"]}},
    }
    around["single"] = [{"SpecialToken": {"id": "[x]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    around["pair"] = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    spec = _spec(
        model,
        added,
        normalizer=_NORMALIZERS[rng.integers(len(_NORMALIZERS))],
        pre_tokenizer=_CUTS[rng.integers(len(_CUTS))],
        decoder=_DECODERS[rng.integers(len(_DECODERS))],
        post_processor=around,
    )
    text = zipf_words(rng, int(rng.choice([0, 1, 20])), distinct=30) + str(
        rng.choice(["", " [x]  to tote [x][x]", " ①É한🤖🤖, a. "])
    )
    return {"content": json.dumps(spec), "text": text}


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    return _examples(rng) | {"text": zipf_words(rng, 20_000, distinct=2_000)}


FORMATS = Procedure(
    reference=use_tokenizer_json,
    examples=_examples,
    paper="https://huggingface.co/docs/tokenizers, format 1.0 (2020)",
    shapes={"encode 100 kB of made-up words": _timed},
)
