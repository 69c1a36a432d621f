"""Linear biases on the CPU: rows of scores in parallel, the bias counted up and never stored."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import EXACT
from llmlab.kernels.twin import twin
from llmlab.reference.positions.alibi import ALIBI, alibi_slopes


@twin(ALIBI, backend="numba")
def alibi(scores_BNTS: np.ndarray) -> np.ndarray:
    B, N, T, S = scores_BNTS.shape
    scores_MS = np.ascontiguousarray(scores_BNTS).reshape(B * N * T, S)
    out_MS = np.empty_like(scores_MS)
    _add(scores_MS, alibi_slopes(N).astype(scores_MS.dtype), max(T, 1), out_MS)
    return out_MS.reshape(scores_BNTS.shape)


@twin(ALIBI, backend="numba", of="backward")
def alibi_backward(dbiased_BNTS: np.ndarray, scores_BNTS: np.ndarray) -> tuple[np.ndarray]:
    return (dbiased_BNTS.copy(),)


@njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
def _add(scores_MS, slopes_N, T, out_MS):
    M, S = scores_MS.shape
    kind = scores_MS.dtype.type
    for m in prange(M):
        slope = slopes_N[(m // T) % slopes_N.size]
        own = np.int32(S - T + m % T)
        scores, out = scores_MS[m], out_MS[m]
        for s in range(S):
            out[s] = scores[s] + slope * kind(np.int32(s) - own)
