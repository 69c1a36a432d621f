"""Decode attention by PyTorch's fused kernel: the G query heads of a key head read its keys once, together."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.flash_decoding import FLASH_DECODING


@twin(FLASH_DECODING, backend="torch")
def flash_decoding(q_BKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, splits: int = 8) -> Tensor:
    if splits < 1:
        raise ValueError(f"splits={splits} must be at least 1")
    return gqa(q_BKGH[:, None], k_BSKH, v_BSKH, causal=False)[:, 0]
