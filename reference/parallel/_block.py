"""One rank's share of attention and of a feed-forward network: what tensor and sequence parallel layers compute locally.

A rank holds some heads, or some columns of the first matrix and the same rows of the second. Its result is a summand of the
layer's: the sum over ranks is the layer's output, and the sum of the input gradients is the layer's input gradient.

Axes: B batch, T position, D model width, N heads held, H head width, F feed-forward columns held, 3 query, key, value.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import attend, attend_backward, causal_TS
from llmlab.reference.layers._activation import named


def attention_share(x_BTD: np.ndarray, qkv_3DNH: np.ndarray, proj_NHD: np.ndarray) -> np.ndarray:
    """Return this rank's summand of causal self-attention, out_BTD = sum over its heads of softmax(q k') v P."""
    q, k, v = np.einsum("btd,cdnh->cbtnh", x_BTD, qkv_3DNH)
    T = x_BTD.shape[1]
    heads_BTNH = attend(q[:, :, :, None], k, v, causal_TS(T, T))[:, :, :, 0]
    return np.einsum("btnh,nhd->btd", heads_BTNH, proj_NHD)


def attention_share_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, qkv_3DNH: np.ndarray, proj_NHD: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx_BTD summand, dqkv_3DNH, dproj_NHD)."""
    q, k, v = np.einsum("btd,cdnh->cbtnh", x_BTD, qkv_3DNH)
    T = x_BTD.shape[1]
    seen_TS = causal_TS(T, T)
    heads_BTNH = attend(q[:, :, :, None], k, v, seen_TS)[:, :, :, 0]
    dheads_BTNH = np.einsum("btd,nhd->btnh", dout_BTD, proj_NHD)
    dq, dk, dv = attend_backward(dheads_BTNH[:, :, :, None], q[:, :, :, None], k, v, seen_TS)
    dqkv = np.stack([dq[:, :, :, 0], dk, dv])
    return (
        np.einsum("cbtnh,cdnh->btd", dqkv, qkv_3DNH),
        np.einsum("cbtnh,btd->cdnh", dqkv, x_BTD),
        np.einsum("btnh,btd->nhd", heads_BTNH, dout_BTD),
    )


def mlp_share(x_BTD: np.ndarray, up_DF: np.ndarray, up_bias_F: np.ndarray, down_FD: np.ndarray) -> np.ndarray:
    """Return this rank's summand of GELU(x U + b) V."""
    gelu, _ = named("gelu")
    return gelu(x_BTD @ up_DF + up_bias_F) @ down_FD


def mlp_share_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, up_DF: np.ndarray, up_bias_F: np.ndarray, down_FD: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx_BTD summand, dup_DF, dup_bias_F, ddown_FD)."""
    gelu, slope = named("gelu")
    hidden_BTF = x_BTD @ up_DF + up_bias_F
    dhidden_BTF = (dout_BTD @ down_FD.T) * slope(hidden_BTF)
    return (
        dhidden_BTF @ up_DF.T,
        np.einsum("btd,btf->df", x_BTD, dhidden_BTF),
        dhidden_BTF.sum((0, 1)),
        np.einsum("btf,btd->fd", gelu(hidden_BTF), dout_BTD),
    )
