"""Verification of token trees on CPU cores: sequences in parallel, one scratch row each for what refused guesses left over."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.decoding.speculative_numba import draw_residual
from llmlab.kernels.numba_math import SUMMED
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.tree_speculative import TREE_SPECULATIVE, require_tree


@twin(TREE_SPECULATIVE, backend="numba")
def tree_speculative(
    parent_BN: np.ndarray, token_BN: np.ndarray, q_BNV: np.ndarray, p_BNV: np.ndarray, uniform_BN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    require_tree(parent_BN, token_BN, p_BNV.shape[-1])
    path_BN = np.full(parent_BN.shape, -1, np.int64)
    last_B = np.empty(len(parent_BN), np.int64)
    _trees(parent_BN, token_BN, np.ascontiguousarray(q_BNV), np.ascontiguousarray(p_BNV), uniform_BN, path_BN, last_B)
    return path_BN, last_B


@njit(parallel=True, error_model="numpy", cache=True)
def _trees(parent_BN, token_BN, q_BNV, p_BNV, uniform_BN, path_BN, last_B):
    for b in prange(len(parent_BN)):
        last_B[b] = _tree(parent_BN[b], token_BN[b], q_BNV[b], p_BNV[b], uniform_BN[b], path_BN[b])


@njit(error_model="numpy", cache=True)
def _tree(parent_N, token_N, q_NV, p_NV, uniform_N, path_N):
    path_N[0] = node = 0
    depth = 1
    left_V = p_NV[0].copy()
    for n in range(1, len(parent_N)):
        if parent_N[n] != node:
            continue
        x = token_N[n]
        if uniform_N[n] * q_NV[n, x] < left_V[x]:
            path_N[depth] = node = n
            depth += 1
            left_V[:] = p_NV[n]
        else:
            _subtract(left_V, q_NV[n])
    return draw_residual(left_V, left_V, uniform_N[0], False)


@njit(fastmath=SUMMED, error_model="numpy", cache=True)
def _subtract(left_V, q_V):
    """left <- norm(max(0, left - q)); unchanged but for its norm where that leaves nothing."""
    zero = left_V.dtype.type(0)
    total, whole = 0.0, 0.0
    for v in range(left_V.size):
        rest = left_V[v] - q_V[v]
        total += zero if rest < zero else rest
        whole += left_V[v]
    if total > 0:
        scale = left_V.dtype.type(1 / total)
        for v in range(left_V.size):
            rest = left_V[v] - q_V[v]
            left_V[v] = (zero if rest < zero else rest) * scale
    else:
        scale = left_V.dtype.type(1 / whole)
        for v in range(left_V.size):
            left_V[v] *= scale
