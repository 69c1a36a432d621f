"""Sampling on CPU cores: rows in parallel; truncations close in on their threshold and sort only the last few candidates."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange

from llmlab.kernels.numba_math import SUMMED, exp_down, row_max, row_sum
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.sampling import SAMPLING, require_options

CUTS = 3
"""Thresholds that are tried at once: a row is longer than the first-level cache, a stretch of it is not."""
FEW = 128
"""Candidates left for sorting."""
BLOCK = 128
"""Scores looked at together for candidates."""
STRETCH = 1024
"""Probabilities summed in their own precision."""


@twin(SAMPLING, backend="numba")
def sampling(
    logits_BV: np.ndarray,
    uniform_B: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon: float = 0.0,
    eta: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    require_options(temperature, top_k, top_p, min_p, typical_p, epsilon, eta)
    logits_BV = np.ascontiguousarray(logits_BV)
    p_BV = np.empty_like(logits_BV)
    token_B = np.empty(len(logits_BV), np.int64)
    dtype = logits_BV.dtype.type
    shares = np.array([top_p, min_p, typical_p, epsilon, eta])
    _rows(logits_BV, np.ascontiguousarray(uniform_B), dtype(temperature), top_k, shares, get_num_threads(), p_BV, token_B)
    return p_BV, token_B


@njit(parallel=True, error_model="numpy", cache=True)
def _rows(logits_BV, uniform_B, temperature, top_k, shares, threads, p_BV, token_B):
    B, V = logits_BV.shape
    parts = min(threads, B)
    for part in prange(parts):
        x = np.empty(V if temperature != 1 else 0, logits_BV.dtype)  # fresh memory costs more than a pass over it
        for b in range(B * part // parts, B * (part + 1) // parts):
            logits, uniform, p = logits_BV[b], uniform_B[b], p_BV[b]
            if temperature != 1:
                for v in range(V):
                    x[v] = logits[v] / temperature
                token_B[b] = _row(x, uniform, top_k, shares, p)
            else:
                token_B[b] = _row(logits, uniform, top_k, shares, p)


@njit(error_model="numpy")
def _row(x, uniform, top_k, shares, p):
    """Write the probabilities of one row of logits and draw from them; until the end they are not divided by their sum."""
    top_p, min_p, typical_p, epsilon, eta = shares
    total = _weigh(x, p)
    if not total > 0:  # no distribution: NaN, or all -inf
        return -1
    if 0 < top_k < x.size:
        total = _keep(p, x, _threshold(x, p, float(top_k), True))
    if top_p < 1:
        total = _keep(p, x, _threshold(x, p, top_p * total, False))
    if min_p > 0:
        total = _keep_likely(p, min_p * row_max(p))
    if typical_p < 1:
        nearness = _nearness(p, total)
        total = _keep(p, nearness, _threshold(nearness, p, typical_p * total, False))
    if epsilon > 0:
        total = _keep_likely(p, min(epsilon * total, row_max(p)))
    if eta > 0:
        floor = min(eta, np.sqrt(eta) * np.exp(-_entropy(p, total)))
        total = _keep_likely(p, min(floor * total, row_max(p)))
    token = _draw(p, uniform * total)
    scale = p.dtype.type(1.0 / total)
    for v in range(p.size):
        p[v] *= scale
    return token


@njit(fastmath=SUMMED, error_model="numpy")
def _weigh(x, p):
    """Write exp(x - max x) to p; return the sum: 0 for a row that is all -inf, NaN (in p too) for one with a NaN or +inf."""
    top, whole = row_max(x), 0.0
    if top == -np.inf:
        p[:] = p.dtype.type(0)
        return whole
    if not top < np.inf:
        p[:] = np.nan
        return np.nan
    for first in range(0, x.size, STRETCH):  # one float32 sum over 128,000 terms would lose 5 bits
        some_x, some_p = x[first : first + STRETCH], p[first : first + STRETCH]
        part = p.dtype.type(0)
        for v in range(some_x.size):
            weight = exp_down(some_x[v] - top)
            some_p[v] = weight
            part += weight
        whole += part
    return whole


@njit(fastmath=SUMMED, error_model="numpy")
def _keep(p, score, threshold):
    """Leave only the probabilities whose scores reach the threshold; return their sum."""
    whole, kind = 0.0, p.dtype.type
    for first in range(0, p.size, STRETCH):
        some_score, some_p = score[first : first + STRETCH], p[first : first + STRETCH]
        part = kind(0)
        for v in range(some_p.size):
            kept = some_p[v] * kind(some_score[v] >= threshold)
            some_p[v] = kept
            part += kept
        whole += part
    return whole


@njit(fastmath=SUMMED, error_model="numpy")
def _keep_likely(p, floor):
    """`_keep` where the scores are the probabilities: one array, so that the loop is vector code."""
    whole, kind = 0.0, p.dtype.type
    least = kind(floor)
    for first in range(0, p.size, STRETCH):
        some_p = p[first : first + STRETCH]
        part = kind(0)
        for v in range(some_p.size):
            kept = some_p[v] * kind(some_p[v] >= least)
            some_p[v] = kept
            part += kept
        whole += part
    return whole


@njit(fastmath=SUMMED, error_model="numpy")
def _reached(score, p, at, masses, counts):
    """Write how much probability, and how many scores, lie at or above each of `at`: several for one read from memory."""
    masses[:], counts[:] = 0.0, 0
    kind = p.dtype.type
    for first in range(0, score.size, STRETCH):
        some_score, some_p = score[first : first + STRETCH], p[first : first + STRETCH]
        for i in range(at.size):
            least, part, few = at[i], kind(0), kind(0)  # both in the row's own precision: one number of lanes
            for v in range(some_score.size):
                above = kind(some_score[v] >= least)  # 0 or 1: branches would not become vector code
                part += above * some_p[v]
                few += above
            masses[i] += part
            counts[i] += np.int64(few)


@njit(error_model="numpy")
def _threshold(score, p, wanted, counting):
    """The largest score from which on up `wanted` is reached, in probability or in tokens; -inf where it never is."""
    at, masses, counts = np.empty(CUTS, score.dtype), np.empty(CUTS), np.empty(CUTS, np.int64)
    top, width = float(row_max(score)), 0.0
    low, high = score.dtype.type(-np.inf), score.dtype.type(np.inf)
    above, few_above, few_below = 0.0, 0, score.size  # reached(high) = above < wanted <= reached(low)
    while low == -np.inf or few_below - few_above > FEW:
        if low == -np.inf:  # widen: from the largest score itself down by 1, 3, 7, ...
            for i in range(CUTS):
                at[i] = top - width
                width = 2 * width + 1
        else:
            for i in range(CUTS):
                at[i] = float(high) + (float(low) - float(high)) * ((i + 1) / (CUTS + 1))
            if not low < at[CUTS // 2] < high:
                return low  # they are neighbours
        _reached(score, p, at, masses, counts)
        for i in range(CUTS):
            reached = float(counts[i]) if counting else masses[i]
            if reached >= wanted:
                low, few_below = at[i], counts[i]
                break
            high, above, few_above = at[i], reached, counts[i]
        if low == -np.inf and (few_above == score.size or at[CUTS - 1] == -np.inf):
            return low
    scores, weights = _between(score, p, low, high, few_below - few_above)
    for i in np.argsort(-scores):
        above += 1.0 if counting else weights[i]
        if above >= wanted:
            return scores[i]
    return low


@njit(fastmath=SUMMED, error_model="numpy")
def _any_between(score, low, high):
    kind = score.dtype.type
    few = kind(0)
    for v in range(score.size):
        few += kind((score[v] >= low) & (score[v] < high))
    return few > 0


@njit(error_model="numpy")
def _between(score, p, low, high, count):
    """Copies of the few scores in [low, high) and of their probabilities; most blocks have none."""
    scores, weights = np.empty(count, score.dtype), np.empty(count, p.dtype)
    place = 0
    for first in range(0, score.size, BLOCK):
        if _any_between(score[first : first + BLOCK], low, high):
            for v in range(first, min(first + BLOCK, score.size)):
                if low <= score[v] < high:
                    scores[place], weights[place] = score[v], p[v]
                    place += 1
    return scores, weights


@njit(error_model="numpy")
def _entropy(p, total):
    entropy = 0.0
    for v in range(p.size):
        if p[v] > 0:
            entropy -= p[v] * np.log(p[v])
    return entropy / total + np.log(total)


@njit(error_model="numpy")
def _nearness(p, total):
    """How near each surprisal is to the entropy, as a number that is 0 at most."""
    middle = p.dtype.type(_entropy(p, total) - np.log(total))
    nearness = np.empty_like(p)
    for v in range(p.size):
        nearness[v] = -abs(np.log(p[v]) + middle)
    return nearness


@njit(error_model="numpy")
def _draw(p, wanted):
    """The first token whose cumulative probability exceeds `wanted`: whole stretches first, then inside one."""
    reached, first = 0.0, 0
    while first + STRETCH < p.size:
        stretch = row_sum(p[first : first + STRETCH])
        if reached + stretch > wanted:
            break
        reached += stretch
        first += STRETCH
    for v in range(first, p.size):
        reached += p[v]
        if reached > wanted:
            return v
    last = p.size - 1
    while not p[last] > 0:
        last -= 1
    return last
