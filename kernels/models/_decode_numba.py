"""One query token per request against its own pages, each key and value read once, where it lies: no gathering, no padding.

Serial: it is bound by memory, one core nearly fills it, and a second pool of threads would wait in PyTorch's way.
Axes: R request, K key/value head, G query heads per key/value head, H head width, M block-table entry, C tokens of a block,
P blocks of the pool.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llmlab.kernels.numba_math import SUMMED, exp_down, maximum


@njit(fastmath=SUMMED, error_model="numpy", cache=True)
def decode_attention(q_RKGH, k_PCKH, v_PCKH, table_RM, context_R, window, out_RKGH):  # type: ignore[no-untyped-def]
    """Write each request's attention over its last `window` cached tokens (all where 0) to `out_RKGH`."""
    R, K, G, H = q_RKGH.shape
    C = k_PCKH.shape[1]
    dtype = q_RKGH.dtype.type
    scale = dtype(1.0 / np.sqrt(H))
    longest = 0
    for r in range(R):
        longest = max(longest, context_R[r])
    score_GS = np.empty((G, longest), q_RKGH.dtype)
    for r in range(R):
        context = context_R[r]
        first = max(0, context - window) if window > 0 else 0
        for k in range(K):
            for s in range(first, context):
                key_H = k_PCKH[table_RM[r, s // C], s % C, k]
                for g in range(G):
                    query_H = q_RKGH[r, k, g]
                    dot = dtype(0)
                    for h in range(H):
                        dot += query_H[h] * key_H[h]
                    score_GS[g, s] = dot * scale
            out_GH = out_RKGH[r, k]
            out_GH[:] = dtype(0)
            for g in range(G):
                score_S = score_GS[g, first:context]
                highest = score_S[0]
                for s in range(len(score_S)):
                    highest = maximum(highest, score_S[s])
                total = dtype(0)
                for s in range(len(score_S)):
                    weight = exp_down(score_S[s] - highest)
                    score_S[s] = weight
                    total += weight
                for s in range(len(score_S)):
                    score_S[s] /= total
            for s in range(first, context):
                value_H = v_PCKH[table_RM[r, s // C], s % C, k]
                for g in range(G):
                    weight = score_GS[g, s]
                    row_H = out_GH[g]
                    for h in range(H):
                        row_H[h] += weight * value_H[h]
