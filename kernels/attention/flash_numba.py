"""Flash attention on CPU cores, forward and backward; parallel over heads and blocks of queries, tiles kept in registers."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS, backward, even_starts, forward
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.flash import FLASH


@twin(FLASH, backend="numba", dtypes=NUMBA_FLOATS)
def flash(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    _require(T, S, causal, block)
    packed = (q_BTKGH.reshape(B * T, K, G, H), k_BSKH.reshape(B * S, K, H), v_BSKH.reshape(B * S, K, H))
    out, lse = forward(*packed, even_starts(B, T), even_starts(B, S), causal=causal)
    return out.reshape(q_BTKGH.shape), lse.reshape(B, T, K, G)


@twin(FLASH, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def flash_backward(
    dout_BTKGH: np.ndarray,
    dlse_BTKG: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    *,
    causal: bool = True,
    block: int = 64,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    _require(T, S, causal, block)
    dq, dk, dv, _ = backward(
        dout_BTKGH.reshape(B * T, K, G, H),
        dlse_BTKG.reshape(B * T, K, G),
        q_BTKGH.reshape(B * T, K, G, H),
        k_BSKH.reshape(B * S, K, H),
        v_BSKH.reshape(B * S, K, H),
        even_starts(B, T),
        even_starts(B, S),
        causal=causal,
    )
    return dq.reshape(q_BTKGH.shape), dk.reshape(k_BSKH.shape), dv.reshape(v_BSKH.shape)


def _require(T: int, S: int, causal: bool, block: int) -> None:
    if causal:
        require_keys(T, S)
    if block < 1:
        raise ValueError(f"block={block} must be at least 1")
