"""Byte-level BPE on one core: published patterns cut by hand-written rules over a class table, words remembered, pairs hashed.

A piece seen before costs one hash of its bytes; a new short one is merged by scanning, a long one through a heap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit

from llmlab.kernels.tokenizers._merging_numba import LONGEST_KEPT, find, merge, pair_table, remember, word_memory
from llmlab.kernels.twin import twin
from llmlab.reference.tokenizers._byte_level import GPT2, LLAMA3, QWEN2, compiled
from llmlab.reference.tokenizers.byte_bpe import BYTE_BPE, Vocabulary, encode, parts

OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)
RULES = {GPT2: 0, LLAMA3: 1, QWEN2: 2}


@twin(BYTE_BPE, backend="numba", dtypes=("float64",))
def tokenize(vocabulary: Vocabulary, text: str | bytes) -> list[int]:
    tables = tables_of(vocabulary)
    if vocabulary.pattern not in RULES or vocabulary.before or vocabulary.after or -1 in vocabulary.byte_ids:
        return encode(vocabulary, text, merge_piece=tables.merge)
    ids: list[int] = []
    for part in parts(vocabulary, text):
        if isinstance(part, int):
            ids.append(part)
            continue
        try:
            data = np.frombuffer(part.encode(), np.uint8)
        except UnicodeEncodeError:  # bytes that are no text, which the rules do not know
            ids += encode(vocabulary, text=part.encode("utf-8", "surrogateescape"), special=False, merge_piece=tables.merge)
            continue
        out = np.empty(data.size, np.int32)
        count = _encode(data, RULES[vocabulary.pattern], classes(), tables.bytes_, *tables.pairs, *tables.words, out)
        ids += out[:count].tolist()
    return ids


@dataclass
class _Tables:
    """A vocabulary as arrays: ids of bytes; pairs as an open hash table; remembered words as another, with their arenas."""

    bytes_: np.ndarray
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray]
    words: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

    def merge(self, _: Any, ids: Sequence[int]) -> list[int]:
        """`reference.tokenizers.byte_bpe.merge` over the hash table."""
        out = np.array(ids, np.int32)
        return out[: merge(out, out.size, *self.pairs)].tolist()


_tables: WeakKeyDictionary[Vocabulary, _Tables] = WeakKeyDictionary()


def tables_of(vocabulary: Vocabulary) -> _Tables:
    """The tables of a vocabulary, made once as long as it lives."""
    if vocabulary not in _tables:
        known = [entry for entry in vocabulary.ids.items() if len(entry[0]) <= LONGEST_KEPT] if vocabulary.whole_pieces else []
        _tables[vocabulary] = _Tables(
            np.array(vocabulary.byte_ids, np.int32), pair_table(vocabulary.pairs), word_memory(dict(known))
        )
    return _tables[vocabulary]


@cache
def classes() -> np.ndarray:
    """The class of every code point, as the pattern language itself sees it."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    everything, kind = "".join(map(chr, points)), np.zeros(0x110000, np.uint8)
    place = np.array(points)
    for pattern, code in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE), (r"[\r\n]+", NEWLINE)):
        for match in compiled(pattern).finditer(everything):
            kind[place[slice(*match.span())]] = code
    return kind


@njit(cache=True)
def _encode(data, rule, kinds, byte_ids, keys, ranks, merged, table, arena, kept_ids, state, out):
    count, place, n = 0, 0, data.size
    while place < n:
        end = _gpt2_end(data, place, n, kinds) if rule == 0 else _llama3_end(data, place, n, kinds, 3 if rule == 1 else 1)
        length = end - place
        slot = -1
        if length <= LONGEST_KEPT:
            slot = find(data, place, length, table, arena)
            if table[slot, 0] >= 0:
                first = table[slot, 2]
                for i in range(table[slot, 3]):
                    out[count + i] = kept_ids[first + i]
                count += table[slot, 3]
                place = end
                continue
        for i in range(length):
            out[count + i] = byte_ids[data[place + i]]
        size = merge(out[count : count + length], length, keys, ranks, merged)
        if slot >= 0:
            remember(data, place, length, out[count : count + size], slot, table, arena, kept_ids, state)
        count += size
        place = end
    return count


@njit(cache=True)
def _kind(data, i, kinds):
    """Class and byte length of the character at i."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return kinds[lead], 1
    if lead < 0xE0:
        return kinds[(lead & 0x1F) << 6 | (data[i + 1] & 0x3F)], 2
    if lead < 0xF0:
        return kinds[(lead & 0xF) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F)], 3
    high = (lead & 7) << 18 | np.int64(data[i + 1] & 0x3F) << 12
    return kinds[high | np.int64(data[i + 2] & 0x3F) << 6 | (data[i + 3] & 0x3F)], 4


@njit(cache=True)
def _run(data, i, n, kinds, kind, most):
    """Where a run of at most `most` characters of one class ends."""
    while i < n and most:
        found, width = _kind(data, i, kinds)
        if found != kind:
            break
        i += width
        most -= 1
    return i


@njit(cache=True)
def _contraction(data, i, n, fold):
    """Length of 's 't 'm 'd 'll 've 're at the apostrophe at i, 0 for none; `fold` takes capitals and the long s too."""
    if i + 1 >= n:
        return 0
    one = data[i + 1]
    if fold and i + 2 < n and one == 0xC5 and data[i + 2] == 0xBF:
        return 3
    lower = np.uint8(0x20) if fold else np.uint8(0)
    if 65 <= one <= 90:
        one |= lower
    if one == 115 or one == 116 or one == 109 or one == 100:
        return 2
    if i + 2 < n:
        two = data[i + 2]
        if 65 <= two <= 90:
            two |= lower
        if (one == 108 and two == 108) or ((one == 118 or one == 114) and two == 101):
            return 3
    return 0


@njit(cache=True)
def _space_end(data, i, n, kinds, line_ends):
    """White space: up to its last line end where those count, else all but the last if something follows, else all."""
    end, last, newline = i, i, i
    while end < n:
        found, width = _kind(data, end, kinds)
        if found != SPACE and found != NEWLINE:
            break
        last = end
        end += width
        if found == NEWLINE:
            newline = end
    if line_ends and newline > i:
        return newline
    return last if end < n and last > i else end


@njit(cache=True)
def _gpt2_end(data, i, n, kinds):
    if data[i] == 39:
        length = _contraction(data, i, n, False)
        if length:
            return i + length
    start = i + 1 if data[i] == 32 else i
    if start < n:
        kind, _ = _kind(data, start, kinds)
        if kind <= NUMBER:
            return _run(data, start, n, kinds, kind, n)
    return _space_end(data, i, n, kinds, False)


@njit(cache=True)
def _llama3_end(data, i, n, kinds, digits):
    if data[i] == 39:
        length = _contraction(data, i, n, True)
        if length:
            return i + length
    kind, width = _kind(data, i, kinds)
    if kind == LETTER:
        return _run(data, i, n, kinds, LETTER, n)
    if kind == NUMBER:
        return _run(data, i, n, kinds, NUMBER, digits)
    following = i + width
    ahead = _kind(data, following, kinds)[0] if following < n else np.uint8(SPACE)
    if kind != NEWLINE and ahead == LETTER:
        return _run(data, following, n, kinds, LETTER, n)
    if kind == OTHER or (data[i] == 32 and ahead == OTHER and following < n):
        end = _run(data, i if kind == OTHER else following, n, kinds, OTHER, n)
        return _run(data, end, n, kinds, NEWLINE, n)
    return _space_end(data, i, n, kinds, True)
