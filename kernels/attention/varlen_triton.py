"""Packed attention on the GPU: flash's tiles, one program per sequence, key head and block of rows; no padding computed."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import backward, forward, forward_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention.varlen import VARLEN


def longest(starts_Z: Tensor) -> int:
    """Tokens of the longest sequence; waits for the device."""
    return int(starts_Z.diff().max()) if len(starts_Z) > 1 else 0


@twin(VARLEN, backend="triton")
def varlen(
    q_UKGH: Tensor, k_WKH: Tensor, v_WKH: Tensor, query_starts_Z: Tensor, key_starts_Z: Tensor, *, causal: bool = True
) -> Tensor:
    return forward(q_UKGH, k_WKH, v_WKH, query_starts_Z, key_starts_Z, longest(query_starts_Z), causal=causal)[0]


@twin(VARLEN, backend="triton", of="backward")
def varlen_backward(
    dout_UKGH: Tensor,
    q_UKGH: Tensor,
    k_WKH: Tensor,
    v_WKH: Tensor,
    query_starts_Z: Tensor,
    key_starts_Z: Tensor,
    *,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    lengths = longest(query_starts_Z), longest(key_starts_Z)
    dq, dk, dv = backward(dout_UKGH, None, q_UKGH, k_WKH, v_WKH, query_starts_Z, key_starts_Z, *lengths, causal=causal)
    return dq, dk, dv, None, None


AOT = [forward_ahead("bf16", 128, G=1, K=32)]
