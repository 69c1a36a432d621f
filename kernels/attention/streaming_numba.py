"""Attention to a rolling cache on CPU cores: keys rotated to their cache positions, then streamed as they lie."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import decode
from llmlab.kernels.positions.rope_numba import rope
from llmlab.kernels.twin import twin
from llmlab.reference.attention.streaming import STREAMING, cache_positions, require


@twin(STREAMING, backend="numba")
def streaming(
    q_BKGH: np.ndarray, k_BCKH: np.ndarray, v_BCKH: np.ndarray, seen_B: np.ndarray, *, sinks: int = 4, theta: float = 10000.0
) -> np.ndarray:
    B, C, _, H = k_BCKH.shape
    require(C, seen_B, sinks)
    if not q_BKGH.size:
        return np.empty_like(q_BKGH)
    place_BC, _ = cache_positions(seen_B, C, sinks)
    held_B = np.minimum(seen_B, C)
    keys_BCKH = rope(k_BCKH, place_BC, theta=theta)
    queries_BKGH = rope(q_BKGH.reshape(B, 1, -1, H), held_B[:, None] - 1, theta=theta).reshape(q_BKGH.shape)
    return decode(queries_BKGH, keys_BCKH, v_BCKH, np.arange(B)[:, None], np.zeros(B, dtype=np.int64), held_B)
