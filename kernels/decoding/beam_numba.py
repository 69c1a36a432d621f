"""A beam step on CPU cores: beams in parallel; two passes over a row, the second keeping its 2N best, sorted."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import SUMMED, exp_down, row_max
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.beam import BEAM, require_diversity

STRETCH = 1024
"""Logits summed, and skipped, at once."""


@twin(BEAM, backend="numba")
def beam(
    logits_BNV: np.ndarray, score_BN: np.ndarray, taken_BV: np.ndarray, *, diversity: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    require_diversity(diversity)
    B, N, _V = logits_BNV.shape
    rank_BNM = np.full((B, N, 2 * N), -np.inf, logits_BNV.dtype)
    token_BNM = np.full((B, N, 2 * N), -1, np.int64)
    score_BNM = np.full_like(rank_BNM, -np.inf)
    dtype = logits_BNV.dtype.type
    penalty = dtype(diversity)
    _beams(np.ascontiguousarray(logits_BNV), score_BN, taken_BV, penalty, rank_BNM, score_BNM, token_BNM)
    rank_BX, score_BX, token_BX = (x.reshape(B, 2 * N * N) for x in (rank_BNM, score_BNM, token_BNM))
    best_BM = np.argsort(-rank_BX, axis=1, kind="stable")[:, : 2 * N]
    token_BM = np.take_along_axis(token_BX, best_BM, axis=1)
    return np.take_along_axis(score_BX, best_BM, axis=1), np.where(token_BM < 0, -1, best_BM // (2 * N)), token_BM


@njit(parallel=True, error_model="numpy", cache=True)
def _beams(logits_BNV, score_BN, taken_BV, penalty, rank_BNM, score_BNM, token_BNM):
    B, N, _ = logits_BNV.shape
    for both in prange(B * N):
        b, n = both // N, both % N
        _beam(logits_BNV[b, n], score_BN[b, n], taken_BV[b], penalty, rank_BNM[b, n], score_BNM[b, n], token_BNM[b, n])


@njit(error_model="numpy", cache=True)
def _beam(logits, score, taken, penalty, ranks, scores, tokens):
    """Fill `ranks` with the best of this beam, best first; of equals the lower token first."""
    top = row_max(logits)
    shift = score - (top + np.log(_total(logits, top)))
    kept = 0
    for first in range(0, logits.size, STRETCH):
        chunk = logits[first : first + STRETCH]
        if kept == ranks.size and penalty >= 0 and not row_max(chunk) + shift > ranks[kept - 1]:
            continue  # nothing here beats the worst kept, penalized or not
        for v in range(chunk.size):
            value = chunk[v] + shift
            rank = value - penalty * taken[first + v]
            if not rank > -np.inf or (kept == ranks.size and not rank > ranks[kept - 1]):
                continue
            place = kept if kept < ranks.size else kept - 1
            while place > 0 and rank > ranks[place - 1]:
                ranks[place], scores[place], tokens[place] = ranks[place - 1], scores[place - 1], tokens[place - 1]
                place -= 1
            ranks[place], scores[place], tokens[place] = rank, value, first + v
            kept = min(kept + 1, ranks.size)


@njit(fastmath=SUMMED, error_model="numpy", cache=True)
def _total(logits, top):
    whole = 0.0
    for first in range(0, logits.size, STRETCH):  # one float32 sum over 128,000 terms would lose 5 bits
        chunk = logits[first : first + STRETCH]
        part = logits.dtype.type(0)
        for v in range(chunk.size):
            part += exp_down(chunk[v] - top)
        whole += part
    return logits.dtype.type(whole)
