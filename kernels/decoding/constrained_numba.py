"""Token masks on CPU cores: automaton states in parallel, each walking the tokens' prefix tree laid out in one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.constrained import CONSTRAINED, Constraint, Trie, Vocabulary, walk


@twin(CONSTRAINED, backend="numba")
def constrained(
    pattern: str, vocabulary: Sequence[bytes], end: int, choices: Sequence[float]
) -> list[tuple[tuple[int, ...], int]]:
    constraint = Constraint.regex(pattern, Vocabulary(tuple(vocabulary), end))
    masks_SV = all_masks(constraint)
    return walk(constraint, lambda state: masks_SV[state], choices)


def all_masks(constraint: Constraint) -> np.ndarray:
    """Which tokens are allowed in every state of the automaton: allowed_SV, one byte each."""
    flat = FlatTrie(constraint.vocabulary.trie)
    machine = constraint.machine
    allowed_SV = np.zeros((len(machine.table), len(constraint.vocabulary.tokens)), dtype=np.bool_)
    _masks(machine.table, flat.bytes, flat.depths, flat.ends, flat.first_ids, flat.ids, flat.deepest, allowed_SV)
    allowed_SV[:, constraint.vocabulary.end] = machine.accepting
    return allowed_SV


class FlatTrie:
    """A prefix tree in depth-first order: of each node its byte, depth, where its subtree ends, and where its tokens begin."""

    def __init__(self, trie: Trie) -> None:
        values: list[int] = []
        depths: list[int] = []
        first_ids: list[int] = []
        ids: list[int] = []
        ends: list[int] = []
        stack: list[tuple[int, Trie, int] | int] = [
            (byte, child, 0) for byte, child in sorted(trie.children.items(), reverse=True)
        ]
        while stack:
            top = stack.pop()
            if isinstance(top, int):  # all below this node has been written
                ends[top] = len(values)
                continue
            byte, node, depth = top
            stack.append(len(values))
            values.append(byte)
            depths.append(depth)
            ends.append(0)
            first_ids.append(len(ids))
            ids += node.ids
            stack += [(b, child, depth + 1) for b, child in sorted(node.children.items(), reverse=True)]
        self.bytes = np.array(values, dtype=np.uint8)
        self.depths = np.array(depths, dtype=np.int32)
        self.ends = np.array(ends, dtype=np.int32)
        self.first_ids = np.array([*first_ids, len(ids)], dtype=np.int32)
        self.ids = np.array(ids, dtype=np.int32)
        self.deepest = max(depths, default=0) + 1


@njit(parallel=True, error_model="numpy", cache=True)
def _masks(table, values, depths, ends, first_ids, ids, deepest, allowed_SV):
    for s in prange(len(table)):
        states = np.empty(deepest + 1, np.int32)
        states[0] = s
        node = 0
        while node < len(values):
            depth = depths[node]
            after = table[states[depth], values[node]]
            if after < 0:
                node = ends[node]
                continue
            states[depth + 1] = after
            for place in range(first_ids[node], first_ids[node + 1]):
                allowed_SV[s, ids[place]] = True
            node += 1
