"""FlashAttention-2 on the GPU: one program per block of queries, backward one per tile of keys and one per block of queries.

Where algorithm 2 lets all tiles of keys add to dq, dq has a pass of its own here: no atomics, the same bytes every time.
"""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import backward_ahead, forward_ahead
from llmlab.kernels.attention.flash_triton import attend, attend_backward
from llmlab.kernels.twin import twin
from llmlab.reference.attention.flash2 import FLASH2, require


@twin(FLASH2, backend="triton")
def flash2(
    q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool = True, rows: int = 128, block: int = 64
) -> tuple[Tensor, Tensor]:
    require(q_BTKGH.shape[1], k_BSKH.shape[1], causal, rows, block)
    out_BTKGH, lse_BTKG = attend(q_BTKGH, k_BSKH, v_BSKH, causal=causal)
    return out_BTKGH, lse_BTKG.to(q_BTKGH.dtype)


@twin(FLASH2, backend="triton", of="backward")
def flash2_backward(
    dout_BTKGH: Tensor,
    dlse_BTKG: Tensor,
    q_BTKGH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    *,
    causal: bool = True,
    rows: int = 128,
    block: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    require(q_BTKGH.shape[1], k_BSKH.shape[1], causal, rows, block)
    return attend_backward(dout_BTKGH, dlse_BTKG, q_BTKGH, k_BSKH, v_BSKH, causal=causal)


AOT = [forward_ahead("bf16", 128, G=1), forward_ahead("bf16", 256, G=1), *backward_ahead("bf16", 128, G=1)]
