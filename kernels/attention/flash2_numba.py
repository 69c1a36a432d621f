"""FlashAttention-2 on CPU cores: a block of queries is a task, the longest first; keys pass by in packed panels."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS
from llmlab.kernels.attention.flash_numba import flash, flash_backward
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention.flash2 import FLASH2, require


@twin(FLASH2, backend="numba", dtypes=NUMBA_FLOATS)
def flash2(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, rows: int = 128, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    require(q_BTKGH.shape[1], k_BSKH.shape[1], causal, rows, block)
    return flash(q_BTKGH, k_BSKH, v_BSKH, causal=causal)


@twin(FLASH2, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def flash2_backward(
    dout_BTKGH: np.ndarray,
    dlse_BTKG: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    *,
    causal: bool = True,
    rows: int = 128,
    block: int = 64,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    require(q_BTKGH.shape[1], k_BSKH.shape[1], causal, rows, block)
    return flash_backward(dout_BTKGH, dlse_BTKG, q_BTKGH, k_BSKH, v_BSKH, causal=causal)
