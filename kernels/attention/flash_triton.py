"""Flash attention on the GPU, forward and backward: a block of rows per program, softmax's state in registers."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import backward, backward_ahead, even_starts, forward, forward_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.flash import FLASH


@twin(FLASH, backend="triton")
def flash(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool = True, block: int = 64) -> tuple[Tensor, Tensor]:
    if block < 1:
        raise ValueError(f"block={block} must be at least 1")
    out_BTKGH, lse_BTKG = attend(q_BTKGH, k_BSKH, v_BSKH, causal=causal)
    return out_BTKGH, lse_BTKG.to(q_BTKGH.dtype)


@twin(FLASH, backend="triton", of="backward")
def flash_backward(
    dout_BTKGH: Tensor,
    dlse_BTKG: Tensor,
    q_BTKGH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    *,
    causal: bool = True,
    block: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    if block < 1:
        raise ValueError(f"block={block} must be at least 1")
    return attend_backward(dout_BTKGH, dlse_BTKG, q_BTKGH, k_BSKH, v_BSKH, causal=causal)


def attend(
    q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool, window: int = 0, splits: int = 1
) -> tuple[Tensor, Tensor]:
    """Dense attention of a batch; return (out_BTKGH, lse_BTKG), lse in float32. `window` 0 is none."""
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    out, lse = forward(
        q_BTKGH.reshape(B * T, K, G, H),
        k_BSKH.reshape(B * S, K, H),
        v_BSKH.reshape(B * S, K, H),
        even_starts(B, T, q_BTKGH.device),
        even_starts(B, S, q_BTKGH.device),
        T,
        causal=causal,
        window=window,
        splits=splits,
    )
    return out.reshape(q_BTKGH.shape), lse.reshape(B, T, K, G)


def attend_backward(
    dout_BTKGH: Tensor,
    dlse_BTKG: Tensor | None,
    q_BTKGH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    *,
    causal: bool,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients."""
    B, T, K, G, H = q_BTKGH.shape
    S = k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    dq, dk, dv = backward(
        dout_BTKGH.reshape(B * T, K, G, H),
        None if dlse_BTKG is None else dlse_BTKG.reshape(B * T, K, G),
        q_BTKGH.reshape(B * T, K, G, H),
        k_BSKH.reshape(B * S, K, H),
        v_BSKH.reshape(B * S, K, H),
        even_starts(B, T, q_BTKGH.device),
        even_starts(B, S, q_BTKGH.device),
        T,
        S,
        causal=causal,
        window=window,
    )
    return dq.reshape(q_BTKGH.shape), dk.reshape(k_BSKH.shape), dv.reshape(v_BSKH.shape)


AOT = [
    forward_ahead("bf16", 64),
    forward_ahead("bf16", 128),
    forward_ahead("fp16", 128, causal=False),
    *backward_ahead("bf16", 64),
    *backward_ahead("bf16", 128),
]
