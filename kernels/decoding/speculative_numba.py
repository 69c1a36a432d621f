"""Verification of guesses on CPU cores: sequences in parallel, one pass over one row of the vocabulary each."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.speculative import SPECULATIVE

STRETCH = 1024
"""Residuals summed at once on the way to the token drawn."""


@twin(SPECULATIVE, backend="numba")
def speculative(
    draft_BK: np.ndarray, q_BKV: np.ndarray, p_BJV: np.ndarray, uniform_BJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    token_BJ = np.full(uniform_BJ.shape, -1, np.int64)
    accepted_B = np.zeros(len(draft_BK), np.int64)
    _sequences(draft_BK, np.ascontiguousarray(q_BKV), np.ascontiguousarray(p_BJV), uniform_BJ, token_BJ, accepted_B)
    return token_BJ, accepted_B


@njit(parallel=True, error_model="numpy", cache=True)
def _sequences(draft_BK, q_BKV, p_BJV, uniform_BJ, token_BJ, accepted_B):
    K = draft_BK.shape[1]
    for b in prange(len(draft_BK)):
        k = 0
        while k < K:
            x = draft_BK[b, k]
            if not uniform_BJ[b, k] * q_BKV[b, k, x] < p_BJV[b, k, x]:
                break
            token_BJ[b, k] = x
            k += 1
        accepted_B[b] = k
        token = -2
        if k < K:
            token = draw_residual(p_BJV[b, k], q_BKV[b, k], uniform_BJ[b, K], True)
        if token == -2:
            token = draw_residual(p_BJV[b, k], p_BJV[b, k], uniform_BJ[b, K], False)
        token_BJ[b, k] = token


@njit(error_model="numpy", cache=True)
def draw_residual(p, q, uniform, less):
    """Draw from max(0, p - q), or from p where not `less`; -2 where nothing is left (and `less`), -1 without a distribution."""
    V = p.size
    stretches = (V + STRETCH - 1) // STRETCH
    sums = np.empty(stretches)
    total = 0.0
    for s in range(stretches):
        sums[s] = _stretch(p[s * STRETCH : (s + 1) * STRETCH], q[s * STRETCH : (s + 1) * STRETCH], less)
        total += sums[s]
    if not total > 0:
        return -2 if less else -1
    wanted, reached, s = uniform * total, 0.0, 0
    while s < stretches - 1 and reached + sums[s] <= wanted:
        reached += sums[s]
        s += 1
    for v in range(s * STRETCH, V):
        weight = _weight(p[v], q[v], less)
        reached += weight
        if reached > wanted:
            return v
    last = V - 1
    while not _weight(p[last], q[last], less) > 0:
        last -= 1
    return last


@njit(error_model="numpy", forceinline=True)
def _weight(p, q, less):
    left = p - q if less else p
    return left if not left < 0 else left * 0


@njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy", cache=True)
def _stretch(p, q, less):
    total = 0.0
    zero = p.dtype.type(0)
    if less:
        for v in range(p.size):
            left = p[v] - q[v]
            total += zero if left < zero else left
    else:
        for v in range(p.size):
            total += p[v]
    return total
