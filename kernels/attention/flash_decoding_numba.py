"""Decode attention on CPU cores: keys and values streamed once, split over the cores, parts merged by their sums."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import decode
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention.flash_decoding import FLASH_DECODING


@twin(FLASH_DECODING, backend="numba", dtypes=NUMBA_FLOATS)
def flash_decoding(q_BKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, splits: int = 8) -> np.ndarray:
    if splits < 1:
        raise ValueError(f"splits={splits} must be at least 1")
    return attend_last(q_BKGH, k_BSKH, v_BSKH, 0)


def attend_last(q_BKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, first: int) -> np.ndarray:
    """Attend one query per sequence to its keys from `first` on: each sequence is one page of its own."""
    B, S = k_BSKH.shape[:2]
    return decode(q_BKGH, k_BSKH, v_BSKH, np.arange(B)[:, None], np.full(B, first), np.full(B, S))
