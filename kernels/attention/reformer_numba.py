"""Reformer's attention on CPU cores: a head per thread; a chunk's products come from register tiles, its rows of queries,
keys and values gathered into panels.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import EXACT, exp_down, row_max, row_sum
from llmlab.kernels.register_tile import TILE_ROWS, add_tiles, lanes
from llmlab.kernels.twin import twin
from llmlab.reference.attention.reformer import CHUNK, REFORMER, require_chunk


@twin(REFORMER, backend="numba")
def reformer(
    qk_BTNH: np.ndarray, v_BTNH: np.ndarray, buckets_BNRT: np.ndarray, *, chunk: int = CHUNK, causal: bool = True
) -> np.ndarray:
    require_chunk(chunk)
    B, T, N, H = qk_BTNH.shape
    qk_ZTH, v_ZTH = (np.ascontiguousarray(x.swapaxes(1, 2)).reshape(B * N, T, H) for x in (qk_BTNH, v_BTNH))
    buckets_ZRT = np.ascontiguousarray(buckets_BNRT).reshape(B * N, buckets_BNRT.shape[2], T)
    order_ZRT = np.argsort(buckets_ZRT, axis=-1, kind="stable")
    place_ZRT = np.argsort(order_ZRT, axis=-1)
    out_ZTH = np.empty_like(v_ZTH)
    _heads(qk_ZTH, v_ZTH, buckets_ZRT, order_ZRT, place_ZRT, min(chunk, max(T, 1)), causal, out_ZTH)
    return out_ZTH.reshape(B, N, T, H).swapaxes(1, 2)


@njit(parallel=True, cache=True, error_model="numpy", fastmath=EXACT)
def _heads(qk_ZTH, v_ZTH, buckets_ZRT, order_ZRT, place_ZRT, chunk, causal, out_ZTH):  # type: ignore[no-untyped-def]
    Z, T, H = qk_ZTH.shape
    R = buckets_ZRT.shape[1]
    lane = lanes(qk_ZTH)
    rows = (chunk + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    wide, Hp = (2 * chunk + lane - 1) // lane * lane, (H + lane - 1) // lane * lane
    for z in prange(Z):
        qk, v, buckets, place = qk_ZTH[z], v_ZTH[z], buckets_ZRT[z], place_ZRT[z]
        inverse = np.empty(T, qk.dtype)
        for t in range(T):
            square = qk.dtype.type(0)
            for h in range(H):
                square += qk[t, h] * qk[t, h]
            inverse[t] = 1 / np.sqrt(square) if square != 0 else qk.dtype.type(1)
        acc, total = np.zeros((T, H), qk.dtype), np.zeros(T, qk.dtype)
        peak = np.full(T, -np.inf, qk.dtype)
        queries, keys_t = np.zeros(rows * H, qk.dtype), np.zeros(H * wide, qk.dtype)
        values, scores = np.zeros(wide * Hp, qk.dtype), np.zeros(rows * wide, qk.dtype)
        result, none = np.zeros(rows * Hp, qk.dtype), np.zeros(TILE_ROWS, qk.dtype)
        for r in range(R):
            order = order_ZRT[z, r]
            for start in range(0, T, chunk):
                first, end = max(start - chunk, 0), min(start + chunk, T)
                count, width = end - start, end - first
                for i in range(count):
                    for h in range(H):
                        queries[i * H + h] = qk[order[start + i], h]
                keys_t[:], values[:], scores[:], result[:] = 0, 0, 0, 0
                for j in range(width):
                    s = order[first + j]
                    for h in range(H):
                        keys_t[h * wide + j] = qk[s, h] * inverse[s]
                        values[j * Hp + h] = v[s, h]
                for i in range(0, count, TILE_ROWS):
                    add_tiles(queries, i * H, H, 1, keys_t, 0, wide, scores, i * wide, wide, H, wide, none, 0)
                for i in range(count):
                    t = order[start + i]
                    row = scores[i * wide : i * wide + width]
                    for j in range(width):
                        s = order[first + j]
                        seen = buckets[r, s] == buckets[r, t] and (s < t if causal else s != t)
                        other = 0
                        while seen and other < r:
                            if buckets[other, s] == buckets[other, t]:
                                apart = place[other, t] // chunk - place[other, s] // chunk
                                seen = apart != 0 and apart != 1
                            other += 1
                        if not seen:
                            row[j] = -np.inf
                    top = row_max(row)
                    new_peak = top if not top <= peak[t] else peak[t]
                    shift = new_peak if new_peak != -np.inf else qk.dtype.type(0)
                    shrink = exp_down(peak[t] - shift)
                    for j in range(width):
                        row[j] = exp_down(row[j] - shift)
                    total[t] = total[t] * shrink + row_sum(row)
                    peak[t] = new_peak
                    for h in range(H):
                        acc[t, h] *= shrink
                for i in range(0, count, TILE_ROWS):
                    add_tiles(scores, i * wide, wide, 1, values, 0, Hp, result, i * Hp, Hp, width, Hp, none, 0)
                for i in range(count):
                    t = order[start + i]
                    for h in range(H):
                        acc[t, h] += result[i * Hp + h]
        for t in range(T):
            for h in range(H):
                out_ZTH[z, t, h] = v[t, h] if peak[t] == -np.inf else acc[t, h] / total[t]
