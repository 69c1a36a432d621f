"""Viterbi for the unigram model on one core: pieces in a double-array trie over bytes, the lattice never written down.

Each place keeps its best score, the piece that reached it and that piece's length; one pass forward, one back.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit

from llmlab.kernels.twin import twin
from llmlab.reference.tokenizers.unigram import UNIGRAM, Vocabulary


@twin(UNIGRAM, backend="numba", dtypes=("float64",))
def tokenize(vocabulary: Vocabulary, text: str) -> list[int]:
    if vocabulary not in _tries:
        _tries[vocabulary] = _trie(vocabulary)
    trie = _tries[vocabulary]
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    best = np.empty(data.size + 1, vocabulary.scores.dtype)
    out = np.empty(data.size + 1, np.int32)
    start = _viterbi(data, trie.bases, trie.checks, trie.ids, trie.scores, vocabulary.unknown, trie.unknown_score, best, out)
    return out[start : data.size].tolist()


@dataclass
class _Trie:
    """Node n goes by byte b to bases[n] + b if checks[that] == n; id (-1 for none) and score of the piece that ends there."""

    bases: np.ndarray
    checks: np.ndarray
    ids: np.ndarray
    scores: np.ndarray
    unknown_score: float


_tries: WeakKeyDictionary[Vocabulary, _Trie] = WeakKeyDictionary()


def _trie(vocabulary: Vocabulary) -> _Trie:
    pieces = sorted((piece.encode("utf-8", "surrogatepass"), number) for piece, number in vocabulary.ids.items())
    letters = np.frombuffer(b"".join(piece for piece, _ in pieces), np.uint8)
    starts = np.cumsum([0, *(len(piece) for piece, _ in pieces)])
    bases, checks, ids = _build(letters, starts, np.array([number for _, number in pieces], np.int32))
    of_id = np.zeros(len(vocabulary.pieces) + 1)
    for piece, number in vocabulary.ids.items():
        of_id[number] = vocabulary.score_of[piece]
    return _Trie(bases, checks, ids, of_id[ids], float(vocabulary.unknown_score))


@njit(cache=True)
def _build(letters, starts, numbers):
    """Lay out the trie of sorted pieces, breadth first, each node's children at the first base where they all fit."""
    room = 1024 + 4 * letters.size
    bases, checks, ids = np.zeros(room, np.int32), np.full(room, -1, np.int32), np.full(room, -1, np.int32)
    queue, head, tail = np.empty((letters.size + 2, 4), np.int64), 0, 1  # node, first piece, beyond last piece, depth
    queue[0, 0], queue[0, 1], queue[0, 2], queue[0, 3] = 0, 0, numbers.size, 0
    checks[0] = 0
    free, crowded = 257, 257  # below, letters could not be reached from a base of at least 1; few gaps lie before `crowded`
    children = np.empty((257, 2), np.int64)
    while head < tail:
        node, first, last, depth = queue[head, 0], queue[head, 1], queue[head, 2], queue[head, 3]
        head += 1
        if first < last and starts[first + 1] - starts[first] == depth:
            ids[node] = numbers[first]
            first += 1
        count, previous = 0, -1
        for piece in range(first, last):
            letter = np.int64(letters[starts[piece] + depth])
            if letter != previous:
                children[count, 0], children[count, 1] = letter, piece
                count += 1
                previous = letter
        if not count:
            continue
        children[count, 1] = last
        while checks[free] >= 0:
            free += 1
        crowded = max(crowded, free)
        first_base = (free if count == 1 else crowded) - children[0, 0]
        base = first_base
        while True:
            if base + 513 > checks.size:
                bases, checks, ids = _doubled(bases, 0), _doubled(checks, -1), _doubled(ids, -1)
            fits = True
            for i in range(count):
                if checks[base + children[i, 0]] >= 0:
                    fits = False
                    break
            if fits:
                break
            base += 1
        if base - first_base > 64:
            crowded = base + children[0, 0]
        bases[node] = base
        for i in range(count):
            child = base + children[i, 0]
            checks[child] = node
            queue[tail, 0], queue[tail, 1], queue[tail, 2], queue[tail, 3] = (
                child,
                children[i, 1],
                children[i + 1, 1],
                depth + 1,
            )
            tail += 1
    end = checks.size
    while checks[end - 1] < 0:
        end -= 1
    end += 257
    if end > checks.size:
        bases, checks, ids = _doubled(bases, 0), _doubled(checks, -1), _doubled(ids, -1)
    return bases[:end].copy(), checks[:end].copy(), ids[:end].copy()


@njit(cache=True)
def _doubled(array, filler):
    grown = np.full(2 * array.size, filler, array.dtype)
    grown[: array.size] = array
    return grown


@njit(cache=True)
def _viterbi(data, bases, checks, ids, scores, unknown, unknown_score, best, out):
    """Fill `out` from its end with the ids of the best segmentation; return where they start."""
    n = data.size
    number, length = np.empty(n + 1, np.int32), np.zeros(n + 1, np.int32)
    rounded = np.empty(1, best.dtype)  # sums are compared in the precision they are kept in
    best[0] = 0
    place = 0
    while place < n:
        lead = data[place]
        width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        here = np.float64(best[place])
        node, end, alone = np.int64(0), place, False
        while end < n:
            letter = np.int64(data[end])
            child = bases[node] + letter
            if checks[child] != node or child == 0:
                break
            node = child
            end += 1
            if ids[node] >= 0:
                if end - place == width:
                    alone = True
                rounded[0] = here + scores[node]
                if length[end] == 0 or rounded[0] > best[end]:
                    best[end], number[end], length[end] = rounded[0], ids[node], end - place
        if not alone:
            end = place + width
            rounded[0] = here + unknown_score
            if length[end] == 0 or rounded[0] > best[end]:
                best[end], number[end], length[end] = rounded[0], unknown, width
        place += width
    start, place = n, n
    while place > 0:
        start -= 1
        out[start] = number[place]
        place -= length[place]
    return start
