"""Softmax on the CPU, online (Milakov and Gimelshein 2018, arXiv:1805.02867): rows in parallel, chunks that stay in cache.

Each chunk is exponentiated once, against the largest score seen so far; a second pass, over cached weights, corrects for
maxima that came later and divides by the total. Scores are read from memory once.
"""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import SUMMED, as_rows, exp_down, maximum, row_dot, row_max
from llmlab.kernels.twin import twin
from llmlab.reference.layers.softmax import SOFTMAX

CHUNK = 4096


@twin(SOFTMAX, backend="numba")
def softmax(x_BTS: np.ndarray, *, axis: int = -1) -> np.ndarray:
    x_last = np.moveaxis(x_BTS, axis, -1)
    x_MS = as_rows(x_last)
    out_MS = np.empty_like(x_MS)
    if x_MS.size:
        _forward(x_MS, out_MS)
    return np.moveaxis(out_MS.reshape(x_last.shape), -1, axis)


@twin(SOFTMAX, backend="numba", of="backward")
def softmax_backward(dweights_BTS: np.ndarray, x_BTS: np.ndarray, *, axis: int = -1) -> tuple[np.ndarray]:
    x_last = np.moveaxis(x_BTS, axis, -1)
    x_MS = as_rows(x_last)
    dx_MS = np.empty_like(x_MS)
    if x_MS.size:
        _backward(as_rows(np.moveaxis(dweights_BTS, axis, -1)), x_MS, dx_MS)
    return (np.moveaxis(dx_MS.reshape(x_last.shape), -1, axis),)


@njit(fastmath=SUMMED, error_model="numpy")
def row_softmax(row, out):
    """Write the softmax of one row, which must not be empty."""
    kind = row.dtype.type
    lowest = kind(-np.inf)
    peak, total = lowest, kind(0)
    chunks = (row.size + CHUNK - 1) // CHUNK
    shifts = np.empty(chunks, row.dtype)
    for c in range(chunks):
        part, weights = row[c * CHUNK : (c + 1) * CHUNK], out[c * CHUNK : (c + 1) * CHUNK]
        higher = maximum(peak, row_max(part))
        shift = kind(0) if higher == lowest else higher  # nothing seen yet: exp(-inf - 0) is 0
        part_total = kind(0)
        for s in range(part.size):
            weight = exp_down(part[s] - shift)
            weights[s] = weight
            part_total += weight
        total = total * (kind(0) if peak == lowest else exp_down(peak - shift)) + part_total
        peak, shifts[c] = higher, higher
    if peak == lowest:
        return  # every weight is 0 already
    for c in range(chunks):
        weights = out[c * CHUNK : (c + 1) * CHUNK]
        factor = exp_down(shifts[c] - peak) / total
        for s in range(weights.size):
            weights[s] *= factor


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _forward(x_MS, out_MS):
    for m in prange(x_MS.shape[0]):
        row_softmax(x_MS[m], out_MS[m])


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _backward(dweights_MS, x_MS, dx_MS):
    for m in prange(x_MS.shape[0]):
        dweights, dx = dweights_MS[m], dx_MS[m]
        row_softmax(x_MS[m], dx)
        drift = row_dot(dweights, dx)
        for s in range(dx.size):
            dx[s] *= dweights[s] - drift
