"""SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226): raw text in, ids out, and back again without loss of spaces.

A normalizer rewrites the text by longest matches of a compiled rule table, spaces become the visible "▁", and a Unigram or a
score-ordered BPE model cuts the result. Characters no piece covers are unknown, or their UTF-8 bytes where the model has pieces
for bytes. `.model` files are protocol buffers; `read_model` reads their few fields by itself.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers import unigram
from llmlab.reference.tokenizers.bpe import Pairs, merge, zipf_words

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces, numbered as in the file."""
MOST_BYTES = 1 << 28
"""A model file above 256 MiB is refused; the largest published ones have 5."""


@dataclass(frozen=True, eq=False)
class Charsmap:
    """A compiled rule table: a double-array trie (Darts) over UTF-8 whose leaves say where the replacement starts.

    The array's 32-bit units hold a label (8 bits), whether a leaf follows, and the distance to the children.
    """

    units: np.ndarray
    replacements: bytes

    @classmethod
    def parse(cls, blob: bytes) -> Charsmap:
        """Split the blob of a `.model` or a tokenizer.json: size of the trie, the trie, the replacements.

        Raises:
            ValueError: it is cut short.
        """
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 4 or size % 4 or not 0 < size <= len(blob) - 4:
            raise ValueError(f"{size} bytes of trie in {len(blob)} bytes")
        return cls(np.frombuffer(blob, "<u4", size // 4, 4), blob[4 + size :])

    def prefixes(self, text: bytes, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (length, replacement) of every rule that matches at `start`, shortest first."""
        units, place = self._units, 0
        unit = units[0]
        place ^= (unit >> 10) << ((unit & 512) >> 6)
        for at in range(start, len(text)):
            place ^= text[at]
            if place >= len(units) or (unit := units[place]) & 0x800000FF != text[at]:
                return
            place ^= (unit >> 10) << ((unit & 512) >> 6)
            if unit & 256 and place < len(units):
                begin = units[place] & 0x7FFFFFFF
                yield at - start + 1, self.replacements[begin : self.replacements.index(b"\0", begin)]

    @cached_property
    def _units(self) -> list[int]:
        return self.units.tolist()


@dataclass(frozen=True, eq=False)
class Model:
    """What a `.model` file holds.

    Attributes:
        pieces, scores, types: of each id.
        kind: "unigram" or "bpe".
        byte_fallback: unknown characters become the byte pieces of their UTF-8.
        charsmap: normalization rules, None for identity.
        denormalizer: rules for decoded text (marks of capital letters become capital letters, say).
        dummy_prefix: a space is put before the text (after it with `space_after`).
        squeeze_spaces: leading, trailing and repeated spaces are dropped.
        escape_spaces: spaces become "▁".
        space_after: spaces belong to the end of words, not to the start.
        unknown_surface: what an unknown id decodes to.
        name: what it is called in errors.
    """

    pieces: tuple[str, ...]
    scores: np.ndarray
    types: tuple[int, ...]
    kind: str = "unigram"
    byte_fallback: bool = False
    charsmap: Charsmap | None = None
    dummy_prefix: bool = True
    squeeze_spaces: bool = True
    escape_spaces: bool = True
    space_after: bool = False
    unknown_surface: str = " ⁇ "
    denormalizer: Charsmap | None = None
    name: str = field(default="model", compare=False)

    @cached_property
    def unknown(self) -> int:
        """The id of what is not known."""
        return self.types.index(UNKNOWN)

    @cached_property
    def found(self) -> dict[str, int]:
        """Pieces that are found in text -> id."""
        return {piece: i for i, piece in enumerate(self.pieces) if self.types[i] in (NORMAL, USER_DEFINED, UNUSED)}

    @cached_property
    def bytes_(self) -> dict[int, int]:
        """Byte -> id of its piece "<0xNN>"."""
        return {int(piece[3:5], 16): number for number, piece in enumerate(self.pieces) if self.types[number] == BYTE}

    @cached_property
    def user_defined(self) -> unigram.Vocabulary:
        """User-defined pieces as a trie of their own."""
        mine = tuple(piece if kind == USER_DEFINED else "" for piece, kind in zip(self.pieces, self.types))
        return unigram.Vocabulary(mine, self.scores, self.unknown, 0.0)

    @cached_property
    def unigram(self) -> unigram.Vocabulary:
        """The pieces as a unigram vocabulary; unknown characters score 10 less than the worst normal piece."""
        usable = tuple(piece if kind in (NORMAL, USER_DEFINED) else "" for piece, kind in zip(self.pieces, self.types))
        normal = [float(score) for score, kind in zip(self.scores, self.types) if kind == NORMAL]
        defined = frozenset(number for number, kind in enumerate(self.types) if kind == USER_DEFINED)
        worst = np.float32(min(normal, default=0.0)) - np.float32(10.0)
        return unigram.Vocabulary(usable, self.scores, self.unknown, float(worst), defined, max(normal, default=0.0))

    @cached_property
    def symbols(self) -> tuple[dict[str, int], Pairs]:
        """For BPE: ids of single characters and of pieces, and which two make a piece, best score first.

        A character that is part of pieces without being one gets an id beyond the vocabulary.
        """
        numbers = dict(self.found)
        for piece in self.found:
            for character in piece:
                numbers.setdefault(character, len(self.pieces) + len(numbers))
        levels = {score: rank for rank, score in enumerate(sorted({-float(score) for score in self.scores}))}
        pairs = {
            (numbers[piece[:cut]], numbers[piece[cut:]]): (levels[-float(self.scores[number])], number)
            for piece, number in self.found.items()
            for cut in range(1, len(piece))
            if piece[:cut] in numbers and piece[cut:] in numbers
        }
        return numbers, pairs


def normalize(model: Model, text: str | bytes) -> str:
    """Rewrite a text by the model's rules, then its spaces (Kudo and Richardson 2018, sections 3.2 and 4.1).

    At each place the longest rule wins; user-defined pieces are left as they are. A byte that is no UTF-8 is U+FFFD.

    >>> normalize(Model(("<unk>",), np.zeros(1, np.float32), (UNKNOWN,)), "  two  words ")
    '▁two▁words'
    """
    parts = iter(_rewritten(model, readable(text)))
    first = next((part for part in parts if not (model.squeeze_spaces and part == " ")), None)
    if first is None:
        return ""
    space = SPACE if model.escape_spaces else " "
    out = [space] if model.dummy_prefix and not model.space_after else []
    after_space = model.squeeze_spaces
    for part in (first, *parts):
        kept = part.lstrip(" ") if after_space else part
        if kept:
            out.append(kept.replace(" ", space))
            after_space = model.squeeze_spaces and kept.endswith(" ")
    joined = "".join(out)
    if model.squeeze_spaces:
        joined = joined.rstrip(space)
    return joined + space if model.dummy_prefix and model.space_after else joined


def readable(text: str | bytes) -> str:
    """Text with U+FFFD for each byte that is no UTF-8 and for each lone surrogate."""
    if isinstance(text, bytes):
        return re.sub("[\udc80-\udcff]", "\ufffd", text.decode("utf-8", "surrogateescape"))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _rewritten(model: Model, text: str) -> Iterator[str]:
    """What each character, or the longest run a rule knows, becomes; user-defined pieces pass."""
    if model.charsmap is None and not model.user_defined.ids:
        yield from text
        return
    at = start = 0  # what lies between is under no user-defined piece
    while at < len(text):
        if mine := _user_defined_end(model, text, at):
            yield from _replaced(model.charsmap, text[start:at])
            yield text[at:mine]
            start = mine
        at = mine or at + 1
    yield from _replaced(model.charsmap, text[start:])


def _user_defined_end(model: Model, text: str, at: int) -> int:
    """Where the longest user-defined piece at a place ends, 0 if there is none."""
    if not model.user_defined.ids:
        return 0
    return max((end for end, number, _ in unigram.edges(model.user_defined, text, at) if number != model.unknown), default=0)


def _replaced(charsmap: Charsmap | None, text: str) -> Iterator[str]:
    if charsmap is None:
        yield from text
        return
    raw, place = text.encode(), 0
    while place < len(raw):
        found = list(charsmap.prefixes(raw, place))
        width = found[-1][0] if found else 1 + sum(raw[place] >= least for least in (0xC0, 0xE0, 0xF0))
        yield (found[-1][1] if found else raw[place : place + width]).decode("utf-8", "replace")
        place += width


def segment(model: Model, normalized: str) -> Iterator[tuple[int, str]]:
    """Cut normalized text by the model; yield (id, text), single characters that are unknown by themselves."""
    if model.kind == "unigram":
        yield from ((number, normalized[start:end]) for start, end, number in unigram.viterbi(model.unigram, normalized))
        return
    numbers, pairs = model.symbols
    strange, frozen = 1 << 40, 1 << 41  # no pair has these
    ids, at = [], 0
    while at < len(normalized):
        mine = _user_defined_end(model, normalized, at)
        ids.append(frozen + model.found[normalized[at:mine]] if mine else numbers.get(normalized[at], strange))
        at = mine or at + 1
    at = 0
    for number in merge(pairs, ids):
        number -= frozen if number >= frozen else 0
        length = len(model.pieces[number]) if number < len(model.pieces) else 1
        yield (number if number < len(model.pieces) else model.unknown), normalized[at : at + length]
        at += length


def encode(model: Model, text: str | bytes) -> list[int]:
    """Return the ids of a text (Kudo and Richardson 2018). Unknown characters in a row are one id, or the ids of their bytes.

    >>> pieces = Model(("<unk>", "▁", "a"), np.array([0.0, -1, -1], np.float32), (UNKNOWN, NORMAL, NORMAL))
    >>> encode(pieces, "a axx")
    [1, 2, 1, 2, 0]
    """
    ids: list[int] = []
    after_unknown = False
    for number, piece in segment(model, normalize(model, text)):
        if number != model.unknown:
            ids.append(number)
        elif model.byte_fallback:
            ids += [model.bytes_[byte] for byte in piece.encode()]
        elif not after_unknown:
            ids.append(number)
        after_unknown = number == model.unknown
    return ids


def decode(model: Model, ids: Iterable[int]) -> str:
    """Return the text of ids: control pieces vanish, byte pieces in a row are read as UTF-8, "▁" is a space again.

    The space put before the text goes. With squeezed spaces every "▁" at the head of a piece goes while there is no text yet.

    Raises:
        ValueError: an id beyond the vocabulary.
    """
    out: list[str] = []
    letters = bytearray()
    strips = model.dummy_prefix or model.squeeze_spaces
    for number in [*ids, -1]:
        if number >= len(model.pieces) or number < -1:
            raise ValueError(f"id={number}: {model.name} has ids 0 to {len(model.pieces) - 1}")
        kind = model.types[number] if number >= 0 else CONTROL
        if kind == BYTE:
            letters.append(int(model.pieces[number][3:5], 16))
            continue
        if letters:
            out.append(readable(bytes(letters)))
            letters.clear()
        if kind == UNKNOWN:
            out.append(model.unknown_surface)
        elif kind != CONTROL:
            piece = model.pieces[number]
            if strips and not any(out) and piece.startswith(SPACE):
                piece = piece.removeprefix(SPACE)
                strips = model.squeeze_spaces
            out.append(piece.replace(SPACE, " "))
    text = "".join(out)
    return text if model.denormalizer is None else "".join(_replaced(model.denormalizer, text))


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protocol buffer message: whole numbers, 4 or 8 raw bytes, or the bytes of a field.

    Raises:
        ValueError: the message is cut short or holds a kind of field that no `.model` has.

    >>> list(fields(bytes([0x08, 0x96, 0x01])))  # the example of the format's own documentation: field 1 is 150
    [(1, 150)]
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"byte {at}: field {key >> 3} has wire type {kind}")
        if at + size > len(data):
            raise ValueError(f"byte {at}: field {key >> 3} has {size} bytes, {len(data) - at} are left")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"byte {at}: a number is cut short")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"byte {at}: a number has more than ten bytes")


def read_model(path: str | Path) -> Model:
    """Read a `.model` file.

    Raises:
        InputError: no such file, too large, no such message inside, or a kind of model that is not here.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(path, "size", path.stat().st_size, f"is over the limit of {MOST_BYTES} bytes")
        return parse_model(path.read_bytes(), name=str(path))
    except OSError as error:
        raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from error


def parse_model(data: bytes, *, name: str = "model") -> Model:
    """Read the message of a `.model` file; see `read_model`."""
    pieces, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    denormalizer: dict[int, Any] = {}
    try:
        for number, value in fields(data):
            if number == 1:
                entry = dict(fields(value))
                pieces.append(entry.get(1, b"").decode())
                scores.append(struct.unpack("<f", entry.get(2, bytes(4)))[0])
                types.append(entry.get(3, NORMAL))
            elif number == 2:
                trainer = dict(fields(value))
            elif number == 3:
                normalizer = dict(fields(value))
            elif number == 5:
                denormalizer = dict(fields(value))
        kind = {1: "unigram", 2: "bpe"}.get(trainer.get(3, 1), "")
        charsmap, back = (Charsmap.parse(spec[2]) if spec.get(2) else None for spec in (normalizer, denormalizer))
        surface = trainer.get(44, " ⁇ ".encode()).decode()
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(name, "", Path(name).name, f"is no SentencePiece model: {error}") from error
    if not kind:
        raise InputError(name, "trainer_spec.model_type", trainer.get(3), "must be 1 (unigram) or 2 (bpe)")
    if types.count(UNKNOWN) != 1:
        raise InputError(name, "pieces", types.count(UNKNOWN), "pieces are the unknown one; there must be one")
    model = Model(
        tuple(pieces),
        np.array(scores, np.float32),
        tuple(types),
        kind,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=charsmap,
        dummy_prefix=bool(normalizer.get(3, 1)),
        squeeze_spaces=bool(normalizer.get(4, 1)),
        escape_spaces=bool(normalizer.get(5, 1)),
        space_after=bool(trainer.get(24, 0)),
        unknown_surface=surface,
        denormalizer=back,
        name=name,
    )
    if kind == "bpe" and UNUSED in types:
        raise InputError(name, "pieces.type", UNUSED, "BPE with pieces taken out of use is not here")
    if model.byte_fallback and set(model.bytes_) != set(range(256)):
        raise InputError(name, "pieces", len(model.bytes_), "byte pieces, where falling back to bytes needs 256")
    return model


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    corpus = zipf_words(rng, 60, distinct=30)
    marked = SPACE + corpus.replace(" ", SPACE) + "aaaa"
    starts = rng.integers(0, len(marked), 100)
    words = {marked[start : start + length] for start, length in zip(starts, rng.integers(2, 6, 100))}
    characters = sorted(set(marked))[:-1]
    normal = [*characters, *sorted(words - set(characters))]
    fallback, kind = bool(rng.integers(2)), str(rng.choice(["unigram", "bpe"]))
    extra = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    mine = ["[x]", "lo"] if rng.integers(2) else []
    normal = [piece for piece in normal if piece not in mine]
    pieces = ("<unk>", "<s>", "</s>", *extra, *mine, *normal)
    types = (UNKNOWN, CONTROL, CONTROL, *[BYTE] * len(extra), *[USER_DEFINED] * len(mine), *[NORMAL] * len(normal))
    scores = -rng.integers(16, 200, len(pieces)).astype(np.float32) / 16
    dummy, squeeze = bool(rng.integers(2)), bool(rng.integers(2))
    model = Model(pieces, scores, types, kind, fallback, None, dummy, squeeze)
    text = zipf_words(rng, int(rng.choice([0, 1, 20])), distinct=20) + str(
        rng.choice(["", "  a  aaaaa ", "[x]lolo🤖🤖한", " "])
    )
    return {"model": model, "text": text}


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    return {"model": _examples(rng)["model"], "text": zipf_words(rng, 20_000, distinct=2_000)}


SENTENCEPIECE = Procedure(
    reference=encode,
    examples=_examples,
    paper="arXiv:1808.06226",
    shapes={"encode 100 kB of made-up words": _timed},
)
