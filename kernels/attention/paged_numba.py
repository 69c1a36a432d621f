"""Paged attention on CPU cores: decode requests read their pages in place, split over the cores; chunks of prefill run
through the register tiles of gqa over their gathered pages."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import decode, forward
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention.paged import PAGED


@twin(PAGED, backend="numba", dtypes=NUMBA_FLOATS)
def paged(
    q_UKGH: np.ndarray,
    k_pages_PCKH: np.ndarray,
    v_pages_PCKH: np.ndarray,
    table_BM: np.ndarray,
    query_starts_Z: np.ndarray,
    context_B: np.ndarray,
) -> np.ndarray:
    out_UKGH = np.zeros_like(q_UKGH)
    tokens_B = np.diff(query_starts_Z)
    single = np.flatnonzero(tokens_B == 1)
    if single.size:
        token = query_starts_Z[single]
        none = np.zeros(single.size, dtype=np.int64)
        out_UKGH[token] = decode(q_UKGH[token], k_pages_PCKH, v_pages_PCKH, table_BM[single], none, context_B[single])
    C = k_pages_PCKH.shape[1]
    for b in np.flatnonzero(tokens_B > 1):
        queries = slice(int(query_starts_Z[b]), int(query_starts_Z[b + 1]))
        context = int(context_B[b])
        pages = table_BM[b, : -(-context // C)]
        k, v = (pool[pages].reshape(-1, *pool.shape[2:])[:context] for pool in (k_pages_PCKH, v_pages_PCKH))
        starts = np.array([0, tokens_B[b]]), np.array([0, context])
        out_UKGH[queries] = forward(q_UKGH[queries], k, v, *starts, causal=True)[0]
    return out_UKGH
