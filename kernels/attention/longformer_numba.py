"""Longformer's attention on CPU cores: three runs of the family's register tiles, merged by their log-sum-exps.

A window that reaches `half` keys to both sides is a causal window of 2 half + 1 over keys that run `half` further: padded at
both ends, local tokens are one such sequence per residue of the dilation. Global tokens are a dense block of keys for the
local queries, and queries of their own over everything.
"""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._tiles_numba import CANCELS, backward, even_starts, forward
from llmlab.kernels.twin import twin
from llmlab.reference.attention.longformer import LONGFORMER, WINDOW, require_pattern

Array = np.ndarray


@twin(LONGFORMER, backend="numba")
def longformer(
    q_BTNH: Array,
    k_BTNH: Array,
    v_BTNH: Array,
    global_q_BPNH: Array,
    global_k_BTNH: Array,
    global_v_BTNH: Array,
    *,
    window: int = WINDOW,
    dilation: int = 1,
) -> Array:
    T, P = q_BTNH.shape[1], global_q_BPNH.shape[1]
    require_pattern(T, P, window, dilation)
    out_BTNH = np.empty_like(q_BTNH)
    out_BTNH[:, :P], _ = _dense(global_q_BPNH, global_k_BTNH, global_v_BTNH)
    for r in range(min(dilation, T - P)):
        local = np.s_[:, P + r :: dilation]
        near, near_lse = _near(q_BTNH[local], k_BTNH[local], v_BTNH[local], window // 2)
        far, far_lse = _dense(q_BTNH[local], k_BTNH[:, :P], v_BTNH[:, :P])
        share, _ = _shares(near_lse, far_lse)
        out_BTNH[local] = far + share[..., None] * (near - far) if P else near
    return out_BTNH


@twin(LONGFORMER, backend="numba", of="backward", looser=CANCELS, tolerance_factor=8.0)
def longformer_backward(
    dout_BTNH: Array,
    q_BTNH: Array,
    k_BTNH: Array,
    v_BTNH: Array,
    global_q_BPNH: Array,
    global_k_BTNH: Array,
    global_v_BTNH: Array,
    *,
    window: int = WINDOW,
    dilation: int = 1,
) -> tuple[Array, ...]:
    T, P = q_BTNH.shape[1], global_q_BPNH.shape[1]
    require_pattern(T, P, window, dilation)
    dq, dk, dv = np.zeros_like(q_BTNH), np.zeros_like(k_BTNH), np.zeros_like(v_BTNH)
    for r in range(min(dilation, T - P)):
        at = np.s_[:, P + r :: dilation]
        q, k, v, dout = q_BTNH[at], k_BTNH[at], v_BTNH[at], dout_BTNH[at]
        near, near_lse = _near(q, k, v, window // 2)
        far, far_lse = _dense(q, k_BTNH[:, :P], v_BTNH[:, :P])
        share, rest = (x[..., None] for x in _shares(near_lse, far_lse))
        # the shares are a softmax over the two log-sum-exps
        dlse = (share * rest)[..., 0] * np.sum(dout * (near - far), axis=-1) if P else None
        dq_near, dk[at], dv[at] = _near_backward(share * dout if P else dout, dlse, q, k, v, window // 2)
        dq[at] = dq_near
        if P:
            dq_far, dk_far, dv_far = _dense_backward(rest * dout, -dlse, q, k_BTNH[:, :P], v_BTNH[:, :P])
            dq[at] += dq_far
            dk[:, :P] += dk_far
            dv[:, :P] += dv_far
    return dq, dk, dv, *_dense_backward(dout_BTNH[:, :P], None, global_q_BPNH, global_k_BTNH, global_v_BTNH)


def _shares(near_lse: Array, far_lse: Array) -> tuple[Array, Array]:
    """What part of the weights each of two runs holds."""
    with np.errstate(over="ignore", invalid="ignore"):
        share = 1 / (1 + np.exp(far_lse - near_lse))
    return share, 1 - share


def _packed(x_BTNH: Array) -> Array:
    """[B T, N, H]"""
    return np.ascontiguousarray(x_BTNH).reshape(-1, *x_BTNH.shape[2:])


def _dense(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    B, T, S = len(q), q.shape[1], k.shape[1]
    out, lse = forward(_packed(q)[:, :, None], _packed(k), _packed(v), even_starts(B, T), even_starts(B, S), causal=False)
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


def _dense_backward(dout: Array, dlse: Array | None, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    B, T, S = len(q), q.shape[1], k.shape[1]
    dq, dk, dv, _ = backward(
        _packed(dout)[:, :, None], None if dlse is None else _packed(dlse)[:, :, None], _packed(q)[:, :, None],
        _packed(k), _packed(v), even_starts(B, T), even_starts(B, S), causal=False,
    )  # fmt: skip
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)


def _padded(x_BTNH: Array, half: int) -> Array:
    """[B (half + T + half), N, H], zeros at both ends."""
    return np.pad(x_BTNH, ((0, 0), (half, half), (0, 0), (0, 0))).reshape(-1, *x_BTNH.shape[2:])


def _kept(B: int, T: int, half: int) -> Array:
    """Which of the padded keys exist."""
    return np.tile(np.pad(np.ones(T, np.bool_), half), B)


def _near(q: Array, k: Array, v: Array, half: int) -> tuple[Array, Array]:
    B, T = q.shape[:2]
    half = min(half, T)
    out, lse = forward(
        _packed(q)[:, :, None], _padded(k, half), _padded(v, half), even_starts(B, T), even_starts(B, T + 2 * half),
        causal=True, window=2 * half + 1, keep_W=_kept(B, T, half),
    )  # fmt: skip
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


def _near_backward(dout: Array, dlse: Array | None, q: Array, k: Array, v: Array, half: int) -> tuple[Array, Array, Array]:
    B, T, N, H = q.shape
    half = min(half, T)
    dq, dk, dv, _ = backward(
        _packed(dout)[:, :, None], None if dlse is None else _packed(dlse)[:, :, None], _packed(q)[:, :, None],
        _padded(k, half), _padded(v, half), even_starts(B, T), even_starts(B, T + 2 * half),
        causal=True, window=2 * half + 1, keep_W=_kept(B, T, half),
    )  # fmt: skip
    inside = np.s_[:, half : half + T]
    return dq.reshape(q.shape), dk.reshape(B, -1, N, H)[inside], dv.reshape(B, -1, N, H)[inside]
