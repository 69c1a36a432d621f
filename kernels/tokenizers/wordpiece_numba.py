"""WordPiece on one core: BERT's normalization as one table over code points, words remembered, pieces in a hashed trie.

Text is read once as UTF-8; each character writes what it becomes into the word under way; a finished word costs one hash of
its bytes if it was seen before, else a walk from the longest match down the trie.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit

from llmlab.kernels.tokenizers._merging_numba import LONGEST_KEPT, PairTable, find, pair_table, remember, slot_of, word_memory
from llmlab.kernels.twin import twin
from llmlab.reference.tokenizers.pretokenize import bert_normalize, is_chinese, is_punctuation, is_white_space
from llmlab.reference.tokenizers.wordpiece import CONTINUES, WORDPIECE, Vocabulary
from llmlab.reference.tokenizers.wordpiece import tokenize as plainly

WORD, SPACE, ALONE, UNSURE = range(4)


@twin(WORDPIECE, backend="numba", dtypes=("float64",))
def tokenize(vocabulary: Vocabulary, text: str) -> list[int]:
    if vocabulary not in _tables:
        _tables[vocabulary] = _tables_of(vocabulary)
    tables = _tables[vocabulary]
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    out = np.empty(4 * data.size + 1, np.int32)  # a character becomes four at most, each a token at most
    folded = folds(vocabulary.lowercase)
    count = _encode(data, *folded, *tables.trie, *tables.roots, tables.unknown, vocabulary.longest_word, *tables.words, out)
    return plainly(vocabulary, text) if count < 0 else out[:count].tolist()


@dataclass
class _Tables:
    """A vocabulary as arrays: the trie's edges (node, byte) -> (id or -1, node), where words start and go on, words seen."""

    trie: PairTable
    roots: tuple[int, int]
    unknown: int
    words: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


_tables: WeakKeyDictionary[Vocabulary, _Tables] = WeakKeyDictionary()


def _tables_of(vocabulary: Vocabulary) -> _Tables:
    nodes: dict[tuple[int, int], tuple[int, int]] = {}
    for piece, number in vocabulary.ids.items():
        goes_on = piece.startswith(CONTINUES) and len(piece) > len(CONTINUES)
        for root, text in ((0, piece), (1, piece.removeprefix(CONTINUES))) if goes_on else ((0, piece),):
            node = root
            letters = text.encode("utf-8", "surrogatepass")
            for place, byte in enumerate(letters):
                _, following = nodes.setdefault((node, byte), (-1, len(nodes) + 2))
                if place == len(letters) - 1:
                    nodes[node, byte] = number, following
                node = following
    return _Tables(pair_table(nodes), (0, 1), vocabulary.ids[vocabulary.unknown], word_memory({}))


@cache
def folds(lowercase: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every code point: its class after normalization, and where and what it becomes in UTF-8.

    One that becomes nothing has no bytes. A spacing mark that canonical order may move is unsure and left to the reference.
    """
    kinds, starts, text = np.zeros(0x110000, np.uint8), np.zeros(0x110001, np.int32), []
    size = 0
    for point in range(0x110000):
        character = chr(point)
        if (
            (0xAC00 <= point < 0xD7A4 and not lowercase)
            or 0xE000 <= point < 0xF900
            or point >= 0xF0000
            or 0xD800 <= point < 0xE000
        ):
            becomes = character if 0xAC00 <= point < 0xD7A4 else ""
        elif 0x323B0 <= point < 0xE0000 or point >= 0xE0200:
            becomes = character  # nothing is assigned here
        else:
            becomes = bert_normalize(character, chinese=False, lowercase=lowercase)
            if unicodedata.combining(character) and unicodedata.category(character) != "Mn":
                kinds[point] = UNSURE
        if kinds[point] != UNSURE and becomes:
            if is_white_space(becomes[0]):
                kinds[point] = SPACE
            elif is_chinese(character) or (len(becomes) == 1 and is_punctuation(becomes)):
                kinds[point] = ALONE
            elif len(becomes) > 1 and any(is_punctuation(one) or is_white_space(one) for one in becomes):
                kinds[point] = UNSURE
        letters = becomes.encode("utf-8", "surrogatepass")
        text.append(letters)
        starts[point] = size
        size += len(letters)
    starts[-1] = size
    return kinds, starts, np.frombuffer(b"".join(text), np.uint8)


@njit(cache=True)
def _encode(
    data, kinds, starts, text, edges, tokens, children, start, goes_on, unknown, longest, table, arena, kept_ids, state, out
):
    word, size, characters, count, place, n = np.empty(64, np.uint8), 0, 0, 0, 0, data.size
    while place <= n:
        point, width, kind = np.int64(0), 1, np.uint8(SPACE)
        if place < n:
            lead = np.int64(data[place])
            if lead < 0x80:
                point = lead
            elif lead < 0xE0:
                point, width = (lead & 0x1F) << 6 | np.int64(data[place + 1] & 0x3F), 2
            elif lead < 0xF0:
                point = (lead & 0xF) << 12 | np.int64(data[place + 1] & 0x3F) << 6 | np.int64(data[place + 2] & 0x3F)
                width = 3
            else:
                high = (lead & 7) << 18 | np.int64(data[place + 1] & 0x3F) << 12
                point = high | np.int64(data[place + 2] & 0x3F) << 6 | np.int64(data[place + 3] & 0x3F)
                width = 4
            kind = kinds[point]
            if kind == UNSURE:
                return -1
        if kind != WORD and size:
            count = _word(
                word, size, characters, edges, tokens, children, start, goes_on, unknown, longest,
                table, arena, kept_ids, state, out, count,
            )  # fmt: skip
            size = characters = 0
        if kind != SPACE:
            first, last = starts[point], starts[point + 1]
            if size + last - first > word.size:
                longer = np.empty(2 * (size + last - first), np.uint8)
                longer[:size] = word[:size]
                word = longer
            for i in range(first, last):
                word[size] = text[i]
                characters += (text[i] & 0xC0) != 0x80
                size += 1
            if kind == ALONE:
                count = _word(
                    word, size, characters, edges, tokens, children, start, goes_on, unknown, longest,
                    table, arena, kept_ids, state, out, count,
                )  # fmt: skip
                size = characters = 0
        place += width
    return count


@njit(cache=True)
def _word(
    word, size, characters, edges, tokens, children, start, goes_on, unknown, longest, table, arena, kept_ids, state, out, count
):
    slot = -1
    if size <= LONGEST_KEPT:
        slot = find(word, 0, size, table, arena)
        if table[slot, 0] >= 0:
            for i in range(table[slot, 3]):
                out[count + i] = kept_ids[table[slot, 2] + i]
            return count + table[slot, 3]
    first, node, place = count, start, 0
    while place < size and characters <= longest:
        end, token = place, -1
        for i in range(place, size):  # the trie knows every length at once: the last piece on the way is the longest
            edge = slot_of(np.int64(node) << 32 | word[i], edges)
            if edges[edge] < 0:
                break
            node = children[edge]
            if tokens[edge] >= 0:
                end, token = i + 1, tokens[edge]
        if token < 0:
            break
        out[count] = token
        count += 1
        place, node = end, goes_on
    if place < size:
        out[first] = unknown
        count = first + 1
    if slot >= 0:
        remember(word, 0, size, out[first:count], slot, table, arena, kept_ids, state)
    return count
