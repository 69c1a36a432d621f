"""Packed attention on CPU cores: the register tiles of gqa over sequences of any length, no padding computed."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS, backward, forward
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention.varlen import VARLEN


@twin(VARLEN, backend="numba", dtypes=NUMBA_FLOATS)
def varlen(
    q_UKGH: np.ndarray,
    k_WKH: np.ndarray,
    v_WKH: np.ndarray,
    query_starts_Z: np.ndarray,
    key_starts_Z: np.ndarray,
    *,
    causal: bool = True,
) -> np.ndarray:
    return forward(q_UKGH, k_WKH, v_WKH, query_starts_Z, key_starts_Z, causal=causal)[0]


@twin(VARLEN, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def varlen_backward(
    dout_UKGH: np.ndarray,
    q_UKGH: np.ndarray,
    k_WKH: np.ndarray,
    v_WKH: np.ndarray,
    query_starts_Z: np.ndarray,
    key_starts_Z: np.ndarray,
    *,
    causal: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None, None]:
    dq, dk, dv, _ = backward(dout_UKGH, None, q_UKGH, k_WKH, v_WKH, query_starts_Z, key_starts_Z, causal=causal)
    return dq, dk, dv, None, None
