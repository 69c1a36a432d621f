"""Grouped-query attention on the GPU: flash's tiles, the heads that share keys in one block of rows; decode splits the keys."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import enough_splits, forward_ahead
from llmlab.kernels.attention.flash_triton import attend, attend_backward
from llmlab.kernels.twin import twin
from llmlab.reference.attention.gqa import GQA


@twin(GQA, backend="triton")
def gqa(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool = True) -> Tensor:
    B, T, K = q_BTKGH.shape[:3]
    splits = enough_splits(B * K, k_BSKH.shape[1], q_BTKGH.device) if T == 1 else 1
    return attend(q_BTKGH, k_BSKH, v_BSKH, causal=causal, splits=splits)[0]


@twin(GQA, backend="triton", of="backward")
def gqa_backward(
    dout_BTKGH: Tensor, q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    return attend_backward(dout_BTKGH, None, q_BTKGH, k_BSKH, v_BSKH, causal=causal)


AOT = [forward_ahead("bf16", 128, G=8), forward_ahead("bf16", 128, rows=4, splits=8)]
