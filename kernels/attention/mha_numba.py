"""Multi-head attention on CPU cores: the register tiles of gqa, masks added to each tile of scores while it is hot."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS, backward, even_starts, forward
from llmlab.kernels.attention.flash_decoding_numba import attend_last
from llmlab.kernels.bfloat16 import NUMBA_FLOATS
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.mha import MHA


@twin(MHA, backend="numba", dtypes=NUMBA_FLOATS)
def mha(
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    keep_BS: np.ndarray | None = None,
    bias_NTS: np.ndarray | None = None,
    *,
    causal: bool = False,
) -> np.ndarray:
    if q_BTNH.shape[1] == 1 and k_BSNH.shape[1] and keep_BS is None and bias_NTS is None:
        return attend_last(q_BTNH[:, 0, :, None], k_BSNH, v_BSNH, 0).reshape(q_BTNH.shape)
    keep_W = None if keep_BS is None else keep_BS.reshape(-1)
    out, _ = forward(*_packed(q_BTNH, k_BSNH, v_BSNH, causal), causal=causal, keep_W=keep_W, bias_KTS=bias_NTS)
    return out.reshape(q_BTNH.shape)


@twin(MHA, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def mha_backward(
    dout_BTNH: np.ndarray,
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    keep_BS: np.ndarray | None = None,
    bias_NTS: np.ndarray | None = None,
    *,
    causal: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None, np.ndarray | None]:
    packed = _packed(q_BTNH, k_BSNH, v_BSNH, causal)
    keep_W = None if keep_BS is None else keep_BS.reshape(-1)
    dq, dk, dv, dbias = backward(
        dout_BTNH.reshape(packed[0].shape), None, *packed, causal=causal, keep_W=keep_W, bias_KTS=bias_NTS
    )
    dbias_NTS = None if bias_NTS is None else dbias
    return dq.reshape(q_BTNH.shape), dk.reshape(k_BSNH.shape), dv.reshape(v_BSNH.shape), None, dbias_NTS


def _packed(q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, causal: bool) -> tuple[np.ndarray, ...]:
    B, T, N, H = q_BTNH.shape
    S = k_BSNH.shape[1]
    if causal:
        require_keys(T, S)
    q, k, v = q_BTNH.reshape(B * T, N, 1, H), k_BSNH.reshape(B * S, N, H), v_BSNH.reshape(B * S, N, H)
    return q, k, v, even_starts(B, T), even_starts(B, S)
