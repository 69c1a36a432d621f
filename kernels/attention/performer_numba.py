"""Performer on CPU cores: a head per thread, its features and products from register tiles, a chunk of the text at a time.

Values carry a column of ones, so that the state's last column sums the keys' features and the result's last one the weights.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import EXACT, exp_down, row_max
from llmlab.kernels.register_tile import TILE_ROWS, add_tiles, lanes
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.performer import PERFORMER

CHUNK = 16 * TILE_ROWS


@twin(PERFORMER, backend="numba")
def performer(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, projection_MH: np.ndarray, *, causal: bool = False
) -> np.ndarray:
    T, S, H = q_BTNH.shape[1], k_BSNH.shape[1], q_BTNH.shape[3]
    if causal:
        require_keys(T, S)
    out_BTNH = np.empty_like(q_BTNH)
    lane = lanes(q_BTNH.dtype)
    M = len(projection_MH)
    Mp = -(-M // (lane * TILE_ROWS)) * lane * TILE_ROWS  # features are columns of one product and rows of another
    projection_HM = np.zeros((H, Mp), dtype=q_BTNH.dtype)
    projection_HM[:, :M] = projection_MH.T * H**-0.25
    _heads(q_BTNH, k_BSNH, v_BSNH, projection_HM.reshape(-1), M, causal, out_BTNH)
    return out_BTNH


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _dots(x_SH, first, n, rows, projection, M, Mp, phi):  # type: ignore[no-untyped-def]
    """w . x' for CHUNK tokens from `first` on, in rows of Mp."""
    H = x_SH.shape[1]
    zero = np.zeros(TILE_ROWS, x_SH.dtype)
    for i in range(n):
        for h in range(H):
            rows[i * H + h] = x_SH[first + i, h]
    rows[n * H :] = 0
    for i in range(0, n, TILE_ROWS):
        phi[i * Mp : (i + TILE_ROWS) * Mp] = 0
        add_tiles(rows, i * H, H, 1, projection, 0, Mp, phi, i * Mp, Mp, H, Mp, zero, 0)


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _exponentials(rows, n, H, peak_of_rows, peak, M, Mp, phi):  # type: ignore[no-untyped-def]
    """phi = exp(dots - |x'|^2 / 2 - peak), its own row's peak or one for all; zeros in the padding."""
    half = rows.dtype.type(0.5 / np.sqrt(H))
    for i in range(n):
        square = rows.dtype.type(0)
        for h in range(H):
            square += rows[i * H + h] * rows[i * H + h]
        row = phi[i * Mp : i * Mp + M]
        top = row_max(row) if peak_of_rows else peak
        shift = square * half
        for m in range(M):
            row[m] = exp_down(row[m] - shift - top)
        phi[i * Mp + M : (i + 1) * Mp] = 0
    phi[n * Mp :] = 0


@njit(cache=True, error_model="numpy")
def _values(v_SH, first, n, Vp, values):  # type: ignore[no-untyped-def]
    H = v_SH.shape[1]
    values[:] = 0
    for i in range(n):
        for h in range(H):
            values[i * Vp + h] = v_SH[first + i, h]
        values[i * Vp + H] = 1


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _absorb(phi, values, n, Mp, Vp, state):  # type: ignore[no-untyped-def]
    """state += phi' values"""
    one = np.ones(TILE_ROWS, phi.dtype)
    for m in range(0, Mp, TILE_ROWS):
        add_tiles(phi, m, 1, Mp, values, 0, Vp, state, m * Vp, Vp, n, Vp, one, 0)


@njit(parallel=True, cache=True, error_model="numpy", fastmath=EXACT)
def _heads(q_BTNH, k_BSNH, v_BSNH, projection, M, causal, out_BTNH):  # type: ignore[no-untyped-def]
    B, T, N, H = q_BTNH.shape
    S = k_BSNH.shape[1]
    lane = lanes(out_BTNH)
    Mp = projection.size // H
    Vp = (H + 1 + lane - 1) // lane * lane
    Cp = (CHUNK + lane - 1) // lane * lane
    for task in prange(B * N):
        b, n = task // N, task % N
        q, k, v, out = q_BTNH[b, :, n], k_BSNH[b, :, n], v_BSNH[b, :, n], out_BTNH[b, :, n]
        rows = np.zeros(CHUNK * H, q.dtype)
        phi_q, phi_k = np.zeros(CHUNK * Mp, q.dtype), np.zeros(CHUNK * Mp, q.dtype)
        values, state = np.zeros(CHUNK * Vp, q.dtype), np.zeros(Mp * Vp, q.dtype)
        result, one = np.zeros(CHUNK * Vp, q.dtype), np.ones(TILE_ROWS, q.dtype)
        transposed, scores = np.zeros(Mp * Cp, q.dtype), np.zeros(CHUNK * Cp, q.dtype)
        # one peak for all keys of the head, found before any is used
        peak = q.dtype.type(-np.inf)
        for first in range(0, S, CHUNK):
            count = min(CHUNK, S - first)
            _dots(k, first, count, rows, projection, M, Mp, phi_k)
            for i in range(count):
                top = row_max(phi_k[i * Mp : i * Mp + M])
                peak = top if not top <= peak else peak
        before = S - T if causal else S
        for first in range(0, before, CHUNK):
            count = min(CHUNK, before - first)
            _dots(k, first, count, rows, projection, M, Mp, phi_k)
            _exponentials(rows, count, H, False, peak, M, Mp, phi_k)
            _values(v, first, count, Vp, values)
            _absorb(phi_k, values, count, Mp, Vp, state)
        for first in range(0, T, CHUNK):
            count = min(CHUNK, T - first)
            _dots(q, first, count, rows, projection, M, Mp, phi_q)
            _exponentials(rows, count, H, True, peak, M, Mp, phi_q)
            result[:] = 0
            for i in range(0, count, TILE_ROWS):
                add_tiles(phi_q, i * Mp, Mp, 1, state, 0, Vp, result, i * Vp, Vp, Mp, Vp, one, 0)
            if causal:
                _dots(k, before + first, count, rows, projection, M, Mp, phi_k)
                _exponentials(rows, count, H, False, peak, M, Mp, phi_k)
                _values(v, before + first, count, Vp, values)
                for i in range(CHUNK):
                    for m in range(Mp):
                        transposed[m * Cp + i] = phi_k[i * Mp + m]
                scores[:] = 0
                for i in range(0, count, TILE_ROWS):
                    add_tiles(phi_q, i * Mp, Mp, 1, transposed, 0, Cp, scores, i * Cp, Cp, Mp, Cp, one, 0)
                for i in range(CHUNK):
                    scores[i * Cp + i + 1 : (i + 1) * Cp] = 0
                for i in range(0, count, TILE_ROWS):
                    add_tiles(scores, i * Cp, Cp, 1, values, 0, Vp, result, i * Vp, Vp, count, Vp, one, 0)
                _absorb(phi_k, values, count, Mp, Vp, state)
            for i in range(count):
                total = result[i * Vp + H]
                for h in range(H):
                    out[first + i, h] = result[i * Vp + h] / total
