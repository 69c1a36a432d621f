"""Decode attention on the GPU: one program per sequence, key head and part of the keys; a second kernel merges the parts."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import forward_ahead, merge_ahead
from llmlab.kernels.attention.flash_triton import attend
from llmlab.kernels.twin import twin
from llmlab.reference.attention.flash_decoding import FLASH_DECODING


@twin(FLASH_DECODING, backend="triton")
def flash_decoding(q_BKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, splits: int = 8) -> Tensor:
    if splits < 1:
        raise ValueError(f"splits={splits} must be at least 1")
    return attend(q_BKGH[:, None], k_BSKH, v_BSKH, causal=False, splits=splits)[0][:, 0]


AOT = [forward_ahead("bf16", 128, rows=4, causal=False, splits=8), merge_ahead("bf16", 128, 8)]
