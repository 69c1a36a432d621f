"""Attention to a quantized cache on CPU cores: key heads in parallel, codes widened in registers, scales taken out of the sums.

A key group's scale is multiplied into the query once per group, so a key costs one product per code; a value's scale goes into
its weight, and the zeros are added once per group of channels.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import EXACT, SUMMED, exp_down, row_dot, row_max, row_sum
from llmlab.kernels.twin import twin
from llmlab.reference.attention.quantized_kv import QUANTIZED_KV, require_shapes


@twin(QUANTIZED_KV, backend="numba")
def quantized_kv(
    q_BKGH: np.ndarray,
    k_code_BSKPW: np.ndarray,
    k_scale_BJKH: np.ndarray,
    k_zero_BJKH: np.ndarray,
    v_code_BSKPW: np.ndarray,
    v_scale_BSKP: np.ndarray,
    v_zero_BSKP: np.ndarray,
    k_recent_BRKH: np.ndarray,
    v_recent_BRKH: np.ndarray,
) -> np.ndarray:
    codes = require_shapes(q_BKGH.shape, k_code_BSKPW.shape, k_scale_BJKH.shape)
    out_BKGH = np.empty_like(q_BKGH, order="C")
    given = (q_BKGH, k_code_BSKPW, k_scale_BJKH, k_zero_BJKH, v_code_BSKPW, v_scale_BSKP, v_zero_BSKP)
    _heads(*(np.ascontiguousarray(x) for x in (*given, k_recent_BRKH, v_recent_BRKH)), codes, out_BKGH)
    return out_BKGH


@njit(cache=True, error_model="numpy", fastmath=SUMMED)
def _dot_codes(query, codes, shift, mask):  # type: ignore[no-untyped-def]
    """Sum of a query's channels times the codes of one plane of a value group's bytes."""
    total = query.dtype.type(0)
    for w in range(codes.size):
        total += query[w] * query.dtype.type(np.int32((codes[w] >> shift) & mask))
    return total


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _add_codes(target, codes, shift, mask, by):  # type: ignore[no-untyped-def]
    for w in range(codes.size):
        target[w] += by * target.dtype.type(np.int32((codes[w] >> shift) & mask))


@njit(parallel=True, cache=True, error_model="numpy", fastmath=EXACT)
def _heads(  # type: ignore[no-untyped-def]
    q, k_code, k_scale, k_zero, v_code, v_scale, v_zero, k_recent, v_recent, codes, out
):
    B, K, G, H = q.shape
    S, P, W = k_code.shape[1], k_code.shape[3], k_code.shape[4]
    J, R = k_scale.shape[1], k_recent.shape[1]
    C = S // max(J, 1)
    bits = 8 // codes
    mask = np.uint8((1 << bits) - 1)
    for task in prange(B * K):
        b, head = task // K, task % K
        kind = q.dtype.type
        root = kind(1 / np.sqrt(H))
        scores = np.empty((G, S + R), q.dtype)
        scaled, shifted = np.empty((G, H), q.dtype), np.empty(G, q.dtype)
        for j in range(J):
            for g in range(G):
                query, scale, zero, by = q[b, head, g], k_scale[b, j, head], k_zero[b, j, head], scaled[g]
                for h in range(H):
                    by[h] = root * query[h] * scale[h]
                shifted[g] = root * row_dot(query, zero)
            for s in range(j * C, (j + 1) * C):
                for g in range(G):
                    total = shifted[g]
                    for p in range(P):
                        for u in range(codes):
                            at = (p * codes + u) * W
                            total += _dot_codes(scaled[g, at : at + W], k_code[b, s, head, p], np.uint8(bits * u), mask)
                    scores[g, s] = total
        for r in range(R):
            for g in range(G):
                scores[g, S + r] = root * row_dot(q[b, head, g], k_recent[b, r, head])
        for g in range(G):
            row, target = scores[g], out[b, head, g]
            peak = row_max(row)
            shift = peak if peak != -np.inf else kind(0)
            for s in range(S + R):
                row[s] = exp_down(row[s] - shift)
            total = row_sum(row)
            by = kind(1) / total if total != 0 else kind(0)
            for s in range(S + R):
                row[s] *= by
            target[:] = 0
        zeros = np.zeros((G, P), q.dtype)
        for s in range(S):
            for g in range(G):
                weight = scores[g, s]
                for p in range(P):
                    by = weight * v_scale[b, s, head, p]
                    zeros[g, p] += weight * v_zero[b, s, head, p]
                    for u in range(codes):
                        at = (p * codes + u) * W
                        _add_codes(out[b, head, g, at : at + W], v_code[b, s, head, p], np.uint8(bits * u), mask, by)
        for g in range(G):
            target = out[b, head, g]
            for p in range(P):
                for h in range(p * codes * W, (p + 1) * codes * W):
                    target[h] += zeros[g, p]
            for r in range(R):
                weight, value = scores[g, S + r], v_recent[b, r, head]
                for h in range(H):
                    target[h] += weight * value[h]
