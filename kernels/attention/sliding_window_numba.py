"""Windowed attention on CPU cores: the register tiles of gqa, panels outside the window skipped."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS
from llmlab.kernels.attention.gqa_numba import attend, attend_backward
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention.sliding_window import SLIDING_WINDOW, WINDOW, require_window


@twin(SLIDING_WINDOW, backend="numba", dtypes=NUMBA_FLOATS)
def sliding_window(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, window: int = WINDOW) -> np.ndarray:
    require_window(window)
    return attend(q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)


@twin(SLIDING_WINDOW, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def sliding_window_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, window: int = WINDOW
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    require_window(window)
    return attend_backward(dout_BTKGH, q_BTKGH, k_BSKH, v_BSKH, causal=True, window=window)
