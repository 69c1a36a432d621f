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
    start = _viterbi(data, trie.nodes, trie.scores, vocabulary.unknown, trie.unknown_score, best, out)
    return out[start : data.size].tolist()


@dataclass
class _Trie:
    """Node n has in its row, side by side in memory, a base, a check, and the id of the piece that ends there.

    It goes by byte b to base + b if the check of that is n. The id is -1 for none; the score stands apart, in float64.
    """

    nodes: np.ndarray
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
    nodes = np.stack([bases, checks, ids, np.zeros_like(ids)], axis=1).astype(np.int32)
    return _Trie(nodes, of_id[ids], float(vocabulary.unknown_score))


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
def _viterbi(data, nodes, scores, unknown, unknown_score, best, out):
    """Fill `out` from its end with the ids of the best segmentation; return where they start."""
    n = data.size
    number, length = np.empty(n + 1, np.int32), np.zeros(n + 1, np.int32)
    best[0] = 0
    place = 0
    while place < n:
        lead = data[place]
        width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        here = np.float64(best[place])
        node, end, alone = np.uint32(0), place, False
        base = nodes[node, 0]
        while end < n:
            child = np.uint32(base) + np.uint32(data[end])
            if np.uint32(nodes[child, 1]) != node or child == 0:
                break
            node = np.uint32(child)
            end += 1
            base, piece = nodes[node, 0], nodes[node, 2]
            if piece >= 0:
                if end - place == width:
                    alone = True
                total = best.dtype.type(here + scores[node])  # sums are compared in the precision they are kept in
                if length[end] == 0 or total > best[end]:
                    best[end], number[end], length[end] = total, piece, end - place
        if not alone:
            end = place + width
            total = best.dtype.type(here + unknown_score)
            if length[end] == 0 or total > best[end]:
                best[end], number[end], length[end] = total, unknown, width
        place += width
    start, place = n, n
    while place > 0:
        start -= 1
        out[start] = number[place]
        place -= length[place]
    return start
