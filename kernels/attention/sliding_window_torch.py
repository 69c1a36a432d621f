"""Windowed attention in blocks of queries, each over the few keys its window reaches; PyTorch's fused kernel per block."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._fused_torch import RECOMPUTED
from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.sliding_window import SLIDING_WINDOW, WINDOW, require_window

BLOCK = 256  # queries; keys outside the window that a block still computes are at most this many


@twin(SLIDING_WINDOW, backend="torch", looser=RECOMPUTED, gradient_factor=4.0)
def sliding_window(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, window: int = WINDOW) -> Tensor:
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    require_keys(T, S)
    require_window(window)
    if window >= S or q_BTKGH.numel() == 0:
        return gqa(q_BTKGH, k_BSKH, v_BSKH)
    if T == 1:
        return gqa(q_BTKGH, k_BSKH[:, -window:], v_BSKH[:, -window:])
    k_BKSH, v_BKSH = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    blocks = []
    for start in range(0, T, BLOCK):
        q_BNTH = q_BTKGH[:, start : start + BLOCK].flatten(2, 3).transpose(1, 2)
        first, last = S - T + start, S - T + start + q_BNTH.shape[2] - 1
        oldest = max(first - window + 1, 0)
        age_TS = torch.arange(first, last + 1, device=q_BTKGH.device)[:, None] - torch.arange(
            oldest, last + 1, device=q_BTKGH.device
        )
        blocks.append(
            torch.nn.functional.scaled_dot_product_attention(
                q_BNTH,
                k_BKSH[:, :, oldest : last + 1],
                v_BKSH[:, :, oldest : last + 1],
                attn_mask=(age_TS >= 0) & (age_TS < window),
                enable_gqa=True,
            ).transpose(1, 2)
        )
    return torch.cat(blocks, dim=1).reshape(q_BTKGH.shape)
