"""Byte-level BPE on one core: published patterns cut by hand-written rules over a class table, words remembered, pairs hashed.

A word of ASCII letters is cut eight bytes at a time. A piece of up to 16 bytes is its own key, two numbers, and a recent one
is found in one look; another seen before costs a hash of its bytes; a new short one is merged by scanning, a long one
through a heap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit

from llmlab.kernels.numba_bits import eight_bytes, trailing_zeros
from llmlab.kernels.tokenizers._merging_numba import LONGEST_KEPT, find, merge, pair_table, remember, word_memory
from llmlab.kernels.twin import twin
from llmlab.reference.tokenizers._byte_level import GPT2, LLAMA3, QWEN2, compiled
from llmlab.reference.tokenizers.byte_bpe import BYTE_BPE, Vocabulary, encode, parts

OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)
RULES = {GPT2: 0, LLAMA3: 1, QWEN2: 2}

RECENT = 15
"""Bits of the number of slots for recent pieces: those of one text should stay in the second level of cache."""
PADDING = bytes(32)
"""After a text, so that looking ahead stays inside."""
NEVER = 255


@twin(BYTE_BPE, backend="numba", dtypes=("float64",))
def tokenize(vocabulary: Vocabulary, text: str | bytes) -> list[int]:
    tables = tables_of(vocabulary)
    if vocabulary.pattern not in RULES or vocabulary.before or vocabulary.after or -1 in vocabulary.byte_ids:
        return encode(vocabulary, text, merge_piece=tables.merge)
    one = isinstance(text, str) and not (vocabulary.special or vocabulary.added or vocabulary.nfc)
    ids: list[int] = []
    for part in [text] if one else parts(vocabulary, text):
        if isinstance(part, int):
            ids.append(part)
            continue
        try:
            data = np.frombuffer(part.encode() + PADDING, np.uint8)
        except UnicodeEncodeError:  # bytes that are no text, or half a character: the rules do not know them
            plain = part if isinstance(text, str) else part.encode("utf-8", "surrogateescape")
            ids += encode(vocabulary, plain, special=False, merge_piece=tables.merge)
            continue
        size, rule = data.size - len(PADDING), RULES[vocabulary.pattern]
        lists = (tables.bytes_, *tables.pairs, *tables.words, tables.recent)
        out = np.empty(size, np.int32)
        count = _encode(data, size, rule, least_lengths(rule), alone(), classes(), *lists, out)
        ids += tables.numbers.take(out[:count]).tolist()
    return ids


@dataclass
class _Tables:
    """A vocabulary as arrays.

    Attributes:
        bytes_: ids of bytes.
        pairs: an open hash table of them.
        words: remembered words as another, with their arenas.
        recent: the last piece of up to 16 bytes that fell on each slot, as two numbers; then how many ids it has << 32 | the
            only one, or where they lie among those of the words.
        numbers: every id as a Python int: taking one from here is quicker than making it.
    """

    bytes_: np.ndarray
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray]
    words: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    recent: np.ndarray
    numbers: np.ndarray

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
            np.array(vocabulary.byte_ids, np.int32),
            pair_table(vocabulary.pairs),
            word_memory(dict(known)),
            np.zeros((1 << RECENT, 4), np.uint64),
            np.arange(1 + max(vocabulary.ids.values())).astype(object),
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


@cache
def least_lengths(rule: int) -> np.ndarray:
    """For each first byte: how many bytes it and the ASCII letters behind it must be to make a piece, NEVER for not so."""
    kinds, least = classes(), np.full(256, NEVER, np.uint8)
    for byte in range(128):
        if kinds[byte] == LETTER:
            least[byte] = 1
        elif byte == ord(" ") or (rule != RULES[GPT2] and byte != ord("'") and kinds[byte] in (OTHER, SPACE)):
            least[byte] = 2
    return least


@cache
def alone() -> np.ndarray:
    """Pairs of bytes whose first is a piece by itself in every pattern: a sign before a space, a line end before a letter."""
    kinds, found = classes()[:128], np.zeros((256, 256), np.bool_)
    found[:128, :128] = np.outer(kinds == OTHER, kinds == SPACE) | np.outer(kinds == NEWLINE, kinds == LETTER)
    return found


@njit(cache=True)
def _encode(data, n, rule, least, alone, kinds, byte_ids, keys, ranks, merged, table, arena, kept_ids, state, recent, out):
    count, place = 0, 0
    while place < n:
        length = _letters_length(data, place)
        if length < least[data[place]] or data[place + length] >= 0x80:  # the rules see every other piece
            if alone[data[place], data[place + 1]]:
                length = 1
            elif rule == 0:
                length = _gpt2_end(data, place, n, kinds) - place
            else:
                length = _llama3_end(data, place, n, kinds, 3 if rule == 1 else 1) - place
        short = length <= 16 and data[place + length - 1] != 0  # then no other piece has the same two numbers
        low, high, spot = np.uint64(0), np.uint64(0), np.int64(0)
        if short:
            low, high = eight_bytes(data, place), eight_bytes(data, place + 8)
            if length <= 8:
                low, high = low & _ALL >> np.uint64(64 - 8 * length), np.uint64(0)
            else:
                high &= _ALL >> np.uint64(128 - 8 * length)
            mixed = (low ^ (high * _ODD ^ high >> np.uint64(32))) * _ODD
            spot = np.int64(mixed >> np.uint64(64 - RECENT))
            if recent[spot, 0] == low and recent[spot, 1] == high:
                size, first = np.int64(recent[spot, 2] >> np.uint64(32)), np.int64(recent[spot, 2] & _HALF)
                if size == 1:
                    out[count] = first
                else:
                    for i in range(size):
                        out[count + i] = kept_ids[first + i]
                count += size
                place += length
                continue
        slot = -1
        if length <= LONGEST_KEPT:
            slot = find(data, place, length, table, arena)
        if slot < 0 or table[slot, 0] < 0:
            for i in range(length):
                out[count + i] = byte_ids[data[place + i]]
            size = merge(out[count : count + length], length, keys, ranks, merged)
            if slot >= 0:
                remember(data, place, length, out[count : count + size], slot, table, arena, kept_ids, state)
        else:
            first, size = np.int64(table[slot, 2]), np.int64(table[slot, 3])
            for i in range(size):
                out[count + i] = kept_ids[first + i]
        if short and (size == 1 or table[slot, 0] >= 0):
            where = np.int64(out[count]) if size == 1 else np.int64(table[slot, 2])
            recent[spot, 0], recent[spot, 1], recent[spot, 2] = low, high, np.uint64(size << 32 | where)
        count += size
        place += length
    return count


_ALL, _HALF, _ODD = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0xFFFFFFFF), np.uint64(0x9E3779B97F4A7C15)
_HIGH_BITS, _LOW_BITS, _CASE = np.uint64(0x8080808080808080), np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x2020202020202020)
_TO_A, _PAST_Z = np.uint64(0x0101010101010101 * (0x80 - 0x61)), np.uint64(0x0101010101010101 * (0x80 - 0x7B))


@njit(cache=True, forceinline=True)
def _no_letters(bytes_):
    """The highest bit of every one of eight bytes that is no ASCII letter."""
    lower = (bytes_ | _CASE) & _LOW_BITS
    return ~((lower + _TO_A) & ~(lower + _PAST_Z) & ~bytes_) & _HIGH_BITS


@njit(cache=True, forceinline=True)
def _letters_length(data, place):
    """One byte and the ASCII letters behind it, 0 where 16 bytes do not show their end."""
    ends = _no_letters(eight_bytes(data, place)) & ~np.uint64(0xFF)
    if ends:
        return trailing_zeros(ends) >> 3
    ends = _no_letters(eight_bytes(data, place + 8))
    return 8 + (trailing_zeros(ends) >> 3) if ends else 0


@njit(cache=True, forceinline=True)
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


@njit(cache=True, forceinline=True)
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
