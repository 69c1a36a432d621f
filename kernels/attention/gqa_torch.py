"""Grouped-query attention by PyTorch's fused kernels; query heads that share keys run as further queries of one head."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._fused_torch import RECOMPUTED, attend
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.gqa import GQA


@twin(GQA, backend="torch", looser=RECOMPUTED, gradient_factor=4.0)
def gqa(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool = True) -> Tensor:
    if q_BTKGH.is_cuda and q_BTKGH.numel():
        return _sdpa(q_BTKGH, k_BSKH, v_BSKH, causal)
    return attend(q_BTKGH, k_BSKH, v_BSKH, causal=causal)[0]


def _sdpa(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, causal: bool) -> Tensor:
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    square = causal and T == S
    mask = None
    if causal and 1 < T < S:
        mask = torch.ones(T, S, dtype=torch.bool, device=q_BTKGH.device).tril(S - T)
    q_BNTH = q_BTKGH.flatten(2, 3).transpose(1, 2)
    k_BKSH, v_BKSH = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(
        q_BNTH, k_BKSH, v_BKSH, attn_mask=mask, is_causal=square, enable_gqa=True
    )
    return out_BNTH.transpose(1, 2).reshape(q_BTKGH.shape)
