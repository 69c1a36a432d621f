"""Typical acceptance on CPU cores: sequences in parallel; only nodes that hold pay for their row's entropy."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.medusa import MEDUSA
from llmlab.reference.decoding.tree_speculative import require_tree


@twin(MEDUSA, backend="numba")
def medusa(
    parent_BN: np.ndarray, token_BN: np.ndarray, p_BNV: np.ndarray, *, epsilon: float = 0.09, delta: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    if not (0 <= epsilon <= 1 and 0 <= delta <= 1):
        raise ValueError(f"{epsilon=}, {delta=}: must lie between 0 and 1")
    require_tree(parent_BN, token_BN, p_BNV.shape[-1])
    path_BN = np.full(parent_BN.shape, -1, np.int64)
    token_B = np.empty(len(parent_BN), np.int64)
    _trees(parent_BN, token_BN, np.ascontiguousarray(p_BNV), epsilon, delta, path_BN, token_B)
    return path_BN, token_B


@njit(parallel=True, error_model="numpy", cache=True)
def _trees(parent_BN, token_BN, p_BNV, epsilon, delta, path_BN, token_B):
    for b in prange(len(parent_BN)):
        token_B[b] = _tree(parent_BN[b], token_BN[b], p_BNV[b], epsilon, delta, path_BN[b])


@njit(error_model="numpy", cache=True)
def _tree(parent_N, token_N, p_NV, epsilon, delta, path_N):
    N = len(parent_N)
    length_N, likelihood_N = np.zeros(N, np.int64), np.zeros(N)
    threshold_N = np.full(N, -1.0)  # of nodes that have been a parent so far
    length_N[0], best = 1, 0
    for n in range(1, N):
        parent = parent_N[n]
        if parent < 0 or length_N[parent] == 0:
            continue
        if threshold_N[parent] < 0:
            threshold_N[parent] = min(epsilon, delta * np.exp(-_entropy(p_NV[parent])))
        p = float(p_NV[parent, token_N[n]])
        if p > threshold_N[parent]:
            length_N[n] = length_N[parent] + 1
            likelihood_N[n] = likelihood_N[parent] + np.log(p)
            longer = length_N[n] > length_N[best]
            if longer or (length_N[n] == length_N[best] and likelihood_N[n] > likelihood_N[best]):
                best = n
    node = best
    for depth in range(length_N[best] - 1, -1, -1):
        path_N[depth] = node
        node = parent_N[node]
    return np.argmax(p_NV[best])


@njit(error_model="numpy", cache=True)
def _entropy(p_V):
    entropy = 0.0
    for v in range(p_V.size):
        if p_V[v] > 0:
            entropy -= p_V[v] * np.log(p_V[v])
    return entropy
