"""Sampling on CPU cores: rows in parallel; truncations bisect for their threshold and sort only the last few candidates."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange

from llmlab.kernels.numba_math import SUMMED, exp_down, maximum, row_max, row_sum
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.sampling import SAMPLING, require_options

FEW = 64
"""Candidates left for sorting."""
STRETCH = 1024
"""Probabilities summed at once on the way to the token drawn."""


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
    parts = min(threads, len(logits_BV))
    for part in prange(parts):
        x, key = np.empty_like(logits_BV[0]), np.empty_like(logits_BV[0])  # fresh memory costs more than a pass over it
        for b in range(len(logits_BV) * part // parts, len(logits_BV) * (part + 1) // parts):
            token_B[b] = _row(logits_BV[b], uniform_B[b], temperature, top_k, shares, p_BV[b], x, key)


@njit(error_model="numpy", cache=True)
def _row(logits, uniform, temperature, top_k, shares, p, x, key):
    top_p, min_p, typical_p, epsilon, eta = shares
    V = logits.size
    for v in range(V):
        x[v] = logits[v] / temperature
        key[v] = -x[v]
    if 0 < top_k < V:
        _drop_above(x, key, _threshold(key, p, float(top_k), True))
    total = _softmax(x, p)
    if not total > 0:  # no distribution: NaN, or all -inf
        return -1
    if top_p < 1:
        threshold = _threshold(key, p, top_p, False)  # what was dropped before has no probability, so its key may stay
        if min_p > 0 or typical_p < 1 or epsilon > 0 or eta > 0:
            _drop_above(x, key, threshold)
        _keep_up_to(p, key, threshold)
    if min_p > 0:
        _drop_below(x, p, p.dtype.type(min_p) * row_max(p), False)
        _softmax(x, p)
    if typical_p < 1:
        distance = _distance(p)
        _drop_above(x, distance, _threshold(distance, p, typical_p, False))
        _softmax(x, p)
    if epsilon > 0:
        _drop_below(x, p, p.dtype.type(epsilon), True)
        _softmax(x, p)
    if eta > 0:
        floor = min(eta, np.sqrt(eta) * np.exp(-_entropy(p)))
        _drop_below(x, p, p.dtype.type(floor), True)
        _softmax(x, p)
    return _draw(p, uniform)


@njit(fastmath=SUMMED, error_model="numpy")
def _softmax(x, p):
    """Write the softmax of x to p; return its denominator: 0 for a row that is all -inf, NaN for one that has a NaN or +inf."""
    top = row_max(x)
    total = p.dtype.type(0)
    if top == -np.inf:
        p[:] = total
        return total
    if not top < np.inf:
        p[:] = np.nan
        return p.dtype.type(np.nan)
    whole = 0.0
    for first in range(0, x.size, STRETCH):  # one float32 sum over 128,000 terms would lose 5 bits
        some_x, some_p = x[first : first + STRETCH], p[first : first + STRETCH]
        part = p.dtype.type(0)
        for v in range(some_x.size):
            weight = exp_down(some_x[v] - top)
            some_p[v] = weight
            part += weight
        whole += part
    total = p.dtype.type(whole)
    scale = p.dtype.type(1) / total
    for v in range(x.size):
        p[v] *= scale
    return total


@njit(fastmath=SUMMED, error_model="numpy")
def _row_min(row):
    least = row.dtype.type(-np.inf)
    for v in range(row.size):
        least = maximum(least, -row[v])
    return -least


@njit(fastmath=SUMMED, error_model="numpy")
def _reached(key, p, threshold):
    """How much probability, and how many keys, lie at or below the threshold."""
    mass, count = 0.0, 0
    nothing = p.dtype.type(0)
    for first in range(0, key.size, STRETCH):  # in the row's own precision within a stretch: twice as many lanes
        some_key, some_p = key[first : first + STRETCH], p[first : first + STRETCH]
        part, few = nothing, np.int32(0)
        for v in range(some_key.size):
            below = some_key[v] <= threshold
            part += some_p[v] if below else nothing
            few += np.int32(1) if below else np.int32(0)
        mass += part
        count += few
    return mass, count


@njit(error_model="numpy")
def _threshold(key, p, wanted, counting):
    """The smallest key at or below which `wanted` is reached, infinity where it never is."""
    low = _row_min(key)
    mass, low_count = _reached(key, p, low)
    below = float(low_count) if counting else mass
    if below >= wanted:
        return low
    high, high_count, width = low, low_count, 1.0
    while True:  # widen until reached(low) < wanted <= reached(high)
        high = key.dtype.type(float(low) + width)
        if not high < np.inf:
            return key.dtype.type(np.inf)
        mass, high_count = _reached(key, p, high)
        reached = float(high_count) if counting else mass
        if reached >= wanted:
            break
        low, low_count, below, width = high, high_count, reached, 4 * width
    base, base_count = 0.0, 0  # what lies below the candidates looked at, once they are few enough to copy
    while high_count - low_count > FEW:
        if 8 * (high_count - low_count) < key.size:
            key, p = _between(key, p, low, high, high_count - low_count)
            base, base_count = below, low_count
        middle = key.dtype.type(0.5 * (float(low) + float(high)))
        if not low < middle < high:
            break
        mass, count = _reached(key, p, middle)
        count += base_count
        reached = float(count) if counting else base + mass
        if reached >= wanted:
            high, high_count = middle, count
        else:
            low, low_count, below = middle, count, reached
    key, p = _between(key, p, low, high, high_count - low_count)
    for i in np.argsort(key):
        below += 1.0 if counting else p[i]
        if below >= wanted:
            return key[i]
    return high


@njit(error_model="numpy")
def _between(key, p, low, high, count):
    """Copies of the keys in (low, high] and their probabilities."""
    keys, weights = np.empty(count, key.dtype), np.empty(count, p.dtype)
    place = 0
    for v in range(key.size):
        if low < key[v] <= high:
            keys[place], weights[place] = key[v], p[v]
            place += 1
    return keys, weights


@njit(error_model="numpy")
def _drop_above(x, key, threshold):
    for v in range(x.size):
        x[v] = -np.inf if key[v] > threshold else x[v]


@njit(fastmath=SUMMED, error_model="numpy")
def _keep_up_to(p, key, threshold):
    """Renormalize the probabilities of keys up to the threshold, the others gone."""
    whole, nothing = 0.0, p.dtype.type(0)
    for first in range(0, p.size, STRETCH):
        some_key, some_p = key[first : first + STRETCH], p[first : first + STRETCH]
        part = nothing
        for v in range(some_p.size):
            kept = some_p[v] if some_key[v] <= threshold else nothing
            some_p[v] = kept
            part += kept
        whole += part
    scale = p.dtype.type(1.0 / whole)
    for v in range(p.size):
        p[v] *= scale


@njit(error_model="numpy")
def _drop_below(x, p, floor, keep_largest):
    top = row_max(x) if keep_largest else np.inf
    for v in range(x.size):
        if p[v] < floor and x[v] < top:
            x[v] = -np.inf


@njit(error_model="numpy")
def _entropy(p):
    entropy = 0.0
    for v in range(p.size):
        if p[v] > 0:
            entropy -= p[v] * np.log(p[v])
    return entropy


@njit(error_model="numpy")
def _distance(p):
    entropy = p.dtype.type(_entropy(p))
    distance = np.empty_like(p)
    for v in range(p.size):
        distance[v] = abs(-np.log(p[v]) - entropy)
    return distance


@njit(error_model="numpy")
def _draw(p, uniform):
    """The first token whose cumulative probability exceeds uniform: whole stretches first, then inside one."""
    total = 0.0
    for first in range(0, p.size, STRETCH):
        total += row_sum(p[first : first + STRETCH])
    wanted, reached, first = uniform * total, 0.0, 0
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
