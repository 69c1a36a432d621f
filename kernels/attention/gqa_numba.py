"""Grouped-query attention on CPU cores: register tiles for blocks of queries, keys read in place for a decode step."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS, backward, even_starts, forward
from llmlab.kernels.attention.flash_decoding_numba import attend_last
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.gqa import GQA


@twin(GQA, backend="numba", dtypes=NUMBA_FLOATS)
def gqa(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True) -> np.ndarray:
    return attend(q_BTKGH, k_BSKH, v_BSKH, causal=causal)


@twin(GQA, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def gqa_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return attend_backward(dout_BTKGH, q_BTKGH, k_BSKH, v_BSKH, causal=causal)


def attend(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool, window: int = 0) -> np.ndarray:
    """Dense attention of a batch; `window` 0 is none."""
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    if T == 1:
        return attend_last(q_BTKGH[:, 0], k_BSKH, v_BSKH, max(S - window, 0) if window else 0)[:, None]
    packed = (q_BTKGH.reshape(B * T, K, G, H), k_BSKH.reshape(B * S, K, H), v_BSKH.reshape(B * S, K, H))
    out, _ = forward(*packed, even_starts(B, T), even_starts(B, S), causal=causal, window=window)
    return out.reshape(q_BTKGH.shape)


def attend_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool, window: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Its gradients."""
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    dout, q = (x.reshape(B * T, K, G, H) for x in (dout_BTKGH, q_BTKGH))
    k, v = (x.reshape(B * S, K, H) for x in (k_BSKH, v_BSKH))
    dq, dk, dv, _ = backward(dout, None, q, k, v, even_starts(B, T), even_starts(B, S), causal=causal, window=window)
    return dq.reshape(q_BTKGH.shape), dk.reshape(k_BSKH.shape), dv.reshape(v_BSKH.shape)
