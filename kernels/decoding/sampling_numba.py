"""Sampling on CPU cores: rows in parallel; truncations bisect for their threshold and sort only the last few candidates."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import SUMMED, exp_down, row_max
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.sampling import SAMPLING, require_options

FEW = 64
"""Candidates left for sorting."""


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
    _rows(logits_BV, np.ascontiguousarray(uniform_B), dtype(temperature), top_k, shares, p_BV, token_B)
    return p_BV, token_B


@njit(parallel=True, error_model="numpy", cache=True)
def _rows(logits_BV, uniform_B, temperature, top_k, shares, p_BV, token_B):
    for b in prange(len(logits_BV)):
        token_B[b] = _row(logits_BV[b], uniform_B[b], temperature, top_k, shares, p_BV[b])


@njit(error_model="numpy", cache=True)
def _row(logits, uniform, temperature, top_k, shares, p):
    top_p, min_p, typical_p, epsilon, eta = shares
    V = logits.size
    x = logits / temperature
    if 0 < top_k < V:
        _drop_above(x, -x, _threshold(-x, p, float(top_k), True))
    total = _softmax(x, p)
    if not total > 0:  # no distribution: NaN, or all -inf
        return -1
    if top_p < 1:
        _drop_above(x, -x, _threshold(-x, p, top_p, False))
        _softmax(x, p)
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
    for v in range(x.size):
        weight = exp_down(x[v] - top)
        p[v] = weight
        total += weight
    scale = p.dtype.type(1) / total
    for v in range(x.size):
        p[v] *= scale
    return total


@njit(fastmath=SUMMED, error_model="numpy")
def _reached(key, p, threshold, counting):
    """How many keys, or how much probability, lies at or below the threshold."""
    if counting:
        count = 0
        for v in range(key.size):
            count += key[v] <= threshold
        return float(count)
    mass = 0.0
    for v in range(key.size):
        mass += p[v] if key[v] <= threshold else p.dtype.type(0)
    return mass


@njit(error_model="numpy")
def _threshold(key, p, wanted, counting):
    """The smallest key at or below which `wanted` is reached, the largest finite one where it never is."""
    low, high = np.inf, -np.inf  # of the finite keys
    for v in range(key.size):
        if key[v] < np.inf:
            low, high = min(low, float(key[v])), max(high, float(key[v]))
    if not _reached(key, p, key.dtype.type(high), counting) >= wanted:
        return key.dtype.type(high)
    if _reached(key, p, key.dtype.type(low), counting) >= wanted:
        return key.dtype.type(low)
    below, few = _reached(key, p, key.dtype.type(low), counting), key.size
    while few > FEW:  # reached(low) < wanted <= reached(high)
        middle = key.dtype.type(0.5 * (low + high))
        if not low < middle < high:
            break
        mass = _reached(key, p, middle, counting)
        if mass >= wanted:
            high = float(middle)
        else:
            low, below = float(middle), mass
        few = 0
        for v in range(key.size):
            few += (key[v] > low) & (key[v] <= high)
    between = np.empty(few, key.dtype)
    weight = np.empty(few, np.float64)
    place = 0
    for v in range(key.size):
        if low < key[v] <= high:
            between[place] = key[v]
            weight[place] = 1.0 if counting else p[v]
            place += 1
    order = np.argsort(between[:place])
    for i in order:
        below += weight[i]
        if below >= wanted:
            return between[i]
    return key.dtype.type(high)


@njit(error_model="numpy")
def _drop_above(x, key, threshold):
    for v in range(x.size):
        if key[v] > threshold:
            x[v] = -np.inf


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
    for v in range(p.size):
        total += p[v]
    wanted, reached, last = uniform * total, 0.0, -1
    for v in range(p.size):
        reached += p[v]
        if p[v] > 0:
            last = v
        if reached > wanted:
            return v
    return last
