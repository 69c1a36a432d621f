"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; over bytes, Radford et al. 2019, section 2.2).

A text is cut by a pattern; within each piece the adjacent pair of lowest rank is merged, again and again. Vocabularies come
from tiktoken rank files, GPT-2's vocab.json and merges.txt, and Hugging Face tokenizer.json; `train` makes new ones.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import regex

from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers._byte_level import GPT2, LLAMA3, byte_order, isolate, to_bytes, to_characters
from llmlab.reference.tokenizers.bpe import Pairs, learn_merges, merge


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A byte-level BPE vocabulary.

    Attributes:
        ids: token bytes -> id. Every single byte is there; where a published file lacks some (Falcon's does), those bytes
            are left out of the ids, as its own library does.
        pairs: which adjacent tokens merge, in which order, into what.
        pattern: regular expression whose matches are the pieces; what lies between matches is a piece too.
        special: texts that are one token and are never cut, where the caller allows them.
        whole_pieces: a piece that is itself a token is emitted as it is, whatever the merges would give (tiktoken, Llama 3).
        nfc: texts are normalized to composed form first (GPT-NeoX).
        before: patterns that cut the text before `pattern` does (Falcon cuts out signs).
        after: further patterns that cut the pieces once more, written in the byte alphabet (Falcon).
        added: special texts to look for only after `special` (Hugging Face's "normalized" ones).
        name: what it is called.
    """

    ids: Mapping[bytes, int]
    pairs: Pairs
    pattern: str = GPT2
    special: Mapping[str, int] = field(default_factory=dict)
    whole_pieces: bool = False
    nfc: bool = False
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    added: Mapping[str, int] = field(default_factory=dict)
    name: str = "vocabulary"

    @cached_property
    def tokens(self) -> dict[int, bytes]:
        """Id -> bytes, special tokens included."""
        texts = {number: text.encode() for text, number in (*self.added.items(), *self.special.items())}
        return {number: token for token, number in self.ids.items()} | texts

    @cached_property
    def byte_ids(self) -> tuple[int, ...]:
        """The id of each single byte, -1 for one that has none."""
        return tuple(self.ids.get(bytes([byte]), -1) for byte in range(256))

    def __len__(self) -> int:
        return max(self.tokens) + 1


def encode(
    vocabulary: Vocabulary,
    text: str | bytes,
    *,
    special: bool = True,
    merge_piece: Callable[[Pairs, Sequence[int]], list[int]] = merge,
) -> list[int]:
    """Return the token ids of a text.

    Bytes that are not UTF-8 are kept: each counts as a sign of its own when the text is cut, and `decode_bytes` gives it
    back. A lone surrogate in a `str`, which has no UTF-8, becomes U+FFFD. With `special` off, special tokens are text.

    >>> tiny = from_ranks({b"a": 0, b"b": 1, b"ab": 2}, complete=True)
    >>> encode(tiny, "abba")
    [2, 1, 0]
    """
    ids: list[int] = []
    known: dict[str, list[int]] = {}
    for piece in pieces(vocabulary, text, special=special):
        if isinstance(piece, int):
            ids.append(piece)
            continue
        if piece not in known:
            known[piece] = encode_piece(vocabulary, to_utf8(piece, vocabulary), merge_piece)
        ids += known[piece]
    return ids


def encode_piece(
    vocabulary: Vocabulary, piece: bytes, merge_piece: Callable[[Pairs, Sequence[int]], list[int]] = merge
) -> list[int]:
    """Return the ids of one piece."""
    if vocabulary.whole_pieces and piece in vocabulary.ids:
        return [vocabulary.ids[piece]]
    single = vocabulary.byte_ids
    return merge_piece(vocabulary.pairs, [single[byte] for byte in piece if single[byte] >= 0])


def pieces(vocabulary: Vocabulary, text: str | bytes, *, special: bool = True) -> Iterator[str | int]:
    """Cut a text into what is merged by itself; special tokens come out as their id.

    Where the vocabulary cuts again in the byte alphabet, pieces come out written in it; see `to_utf8`.
    """
    for part in parts(vocabulary, text, special=special):
        if isinstance(part, int):
            yield part
            continue
        cut = [part]
        for pattern in (*vocabulary.before, vocabulary.pattern):
            cut = [piece for whole in cut for piece in isolate(pattern, whole)] if pattern else cut
        if vocabulary.after:
            cut = [to_characters(piece.encode("utf-8", "surrogateescape")) for piece in cut]
            for pattern in vocabulary.after:
                cut = [piece for whole in cut for piece in isolate(pattern, whole)]
        yield from cut


def to_utf8(piece: str, vocabulary: Vocabulary) -> bytes:
    """The bytes of a piece that `pieces` gave."""
    return to_bytes(piece) if vocabulary.after else piece.encode("utf-8", "surrogateescape")


def parts(vocabulary: Vocabulary, text: str | bytes, *, special: bool = True) -> Iterator[str | int]:
    """Split at special tokens, the leftmost first and the longest of those; each comes out as its id."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    else:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    found: list[str | int] = [text]
    for table in (vocabulary.special, vocabulary.added):
        if special and table:
            found = [piece for part in found for piece in (_split(table, part) if isinstance(part, str) else [part])]
        if table is vocabulary.special and vocabulary.nfc:
            found = [unicodedata.normalize("NFC", part) if isinstance(part, str) else part for part in found]
    return (part for part in found if part != "")


def _split(table: Mapping[str, int], text: str) -> Iterator[str | int]:
    longest_first = sorted(table, key=len, reverse=True)
    pattern = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")")
    for piece in pattern.split(text):
        yield table.get(piece, piece)


def decode_bytes(vocabulary: Vocabulary, ids: Iterable[int]) -> bytes:
    """Return the bytes of token ids.

    Raises:
        ValueError: an id that no token has.
    """
    tokens = vocabulary.tokens
    try:
        return b"".join(tokens[number] for number in ids)
    except KeyError as error:
        raise ValueError(f"id={error.args[0]}: no token of {vocabulary.name}") from None


def decode(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    """Return the text of token ids; bytes that are not UTF-8 (half a character, say) become U+FFFD.

    Raises:
        ValueError: an id that no token has.
    """
    return decode_bytes(vocabulary, ids).decode("utf-8", "replace")


def from_ranks(ranks: Mapping[bytes, int], *, complete: bool = False, **more: Any) -> Vocabulary:
    """Make a vocabulary from tiktoken ranks: two tokens merge if their bytes joined are a token, whose id is the rank.

    `complete` adds single bytes that are missing, after the last id.

    Raises:
        ValueError: a single byte is missing.
    """
    ids = dict(ranks)
    for byte in (bytes([value]) for value in range(256)):
        if byte not in ids:
            if not complete:
                raise ValueError(f"the vocabulary has no token for the byte {byte!r}")
            ids[byte] = max(ids.values()) + 1
    pairs = {
        (ids[token[:cut]], ids[token[cut:]]): (number, number)
        for token, number in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    }
    return Vocabulary(ids, pairs, **{"whole_pieces": True, **more})


def from_merges(ids: Mapping[bytes, int], merges: Iterable[tuple[bytes, bytes]], **more: Any) -> Vocabulary:
    """Make a vocabulary from token ids and merges in order of rank.

    Raises:
        ValueError: a merge of or into something that is no token.
    """
    pairs = {}
    for rank, (left, right) in enumerate(merges):
        missing = [token for token in (left, right, left + right) if token not in ids]
        if missing:
            raise ValueError(f"merge {rank} of {left!r} and {right!r}: {missing[0]!r} is no token")
        pairs[ids[left], ids[right]] = (rank, ids[left + right])
    return Vocabulary(dict(ids), pairs, **more)


def train(texts: Iterable[str], vocab_size: int, *, pattern: str = GPT2, special: Sequence[str] = ()) -> Vocabulary:
    """Learn merges: again and again join the most frequent adjacent pair of the pieces, until there are `vocab_size` tokens.

    Of equally frequent pairs the one with the lowest (left id, right id) is joined. Ids: special tokens, the 256 bytes in
    the order of `byte_order`, then the merges. A pair is counted at every place, overlapping ones included.

    Raises:
        ValueError: less room than special tokens and bytes need.

    >>> decode(train(["aaab aaab aaab"], 258), [256, 257])  # a a six times, then of the equals a b
    'aaab'
    """
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size={vocab_size} has no room for 256 bytes and {len(special)} special tokens")
    tokens = [text.encode() for text in special] + [bytes([byte]) for byte in byte_order()]
    number_of = {token: number for number, token in enumerate(tokens) if number >= len(special)}
    counted = Counter(piece.encode() for text in texts for piece in isolate(pattern, text))
    words = {tuple(number_of[bytes([byte])] for byte in piece): count for piece, count in counted.items()}
    merges = [(tokens[left], tokens[right]) for left, right, _ in learn_merges(words, tokens, vocab_size, len(special))]
    ids = {token: number for number, token in enumerate(tokens) if number >= len(special)}
    named = {text: number for number, text in enumerate(special)}
    return from_merges(ids, merges, pattern=pattern, special=named, name="trained")


def tokenize(vocabulary: Vocabulary, text: str | bytes) -> list[int]:
    """Return the token ids of a text, special tokens recognized; see `encode`."""
    return encode(vocabulary, text)


_SYLLABLES = ("ka", "lo", "mi", "the", "ing", "st", "é", "世", "界", "ß", "1", "23", "4567", "'s", "'LL", "🤖", "x", "Q")
_BETWEEN = (" ", " ", " ", "  ", "\n", "\r\n", "\t", ". ", ", ", "-", "   \n  ", "\u00a0", "", "!?", "<|end|>", "'")


def babble(rng: np.random.Generator, words: int) -> str:
    """A text of made-up words over several scripts, with the spaces, line ends and signs that patterns treat specially."""
    lengths = rng.integers(0, 5, words)
    return "".join("".join(rng.choice(_SYLLABLES, length)) + str(rng.choice(_BETWEEN)) for length in lengths)


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    pattern = str(rng.choice([GPT2, LLAMA3]))
    learned = train([babble(rng, 60)], int(rng.integers(257, 340)), pattern=pattern, special=["<|end|>"])
    if rng.random() < 0.5:
        learned = from_ranks(learned.ids, pattern=pattern, special=dict(learned.special))
    return {"vocabulary": learned, "text": babble(rng, int(rng.choice([0, 1, 5, 60])))}


def _timed(words: int, vocab_size: int) -> Callable[[np.random.Generator], dict[str, Any]]:
    def make(rng: np.random.Generator) -> dict[str, Any]:
        learned = train([babble(rng, words // 20)], vocab_size, pattern=LLAMA3)
        return {"vocabulary": learned, "text": babble(rng, words)}

    return make


BYTE_BPE = Procedure(
    reference=tokenize,
    examples=_examples,
    paper="arXiv:1508.07909",
    shapes={"1 MB of made-up words, 2k vocabulary, llama-3 pattern": _timed(130_000, 2048)},
)
