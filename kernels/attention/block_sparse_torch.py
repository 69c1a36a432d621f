"""Block-sparse attention by PyTorch's fused kernel: per key head, the listed blocks gathered beside each query block."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._gathered_torch import CANCELS, attend_gathered
from llmlab.kernels.twin import twin
from llmlab.reference.attention.block_sparse import BLOCK_SPARSE, block_size


@twin(BLOCK_SPARSE, backend="torch", looser=CANCELS, gradient_factor=4.0)
def block_sparse(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, listed_KQL: Tensor, *, causal: bool = True) -> Tensor:
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    C = block_size(T, S, listed_KQL.cpu().numpy())
    position_C = torch.arange(C, device=q_BTKGH.device)
    heads = []
    for head, listed_QL in enumerate(listed_KQL):
        Q = listed_QL.shape[0]
        key_QS = (listed_QL.clamp(min=0)[:, :, None] * C + position_C).flatten(1)
        seen_QCS = (listed_QL >= 0).repeat_interleave(C, dim=1)[:, None].expand(-1, C, -1)
        if causal:
            query_QC = S - T + torch.arange(T, device=q_BTKGH.device).view(Q, C)
            seen_QCS = seen_QCS & (key_QS[:, None] <= query_QC[:, :, None])
        q_ZCGH = q_BTKGH[:, :, head].unflatten(1, (Q, C)).flatten(0, 1)
        k_ZSH, v_ZSH = (x[:, key_QS, head].flatten(0, 1) for x in (k_BSKH, v_BSKH))
        out_ZCGH = attend_gathered(q_ZCGH, k_ZSH, v_ZSH, seen_QCS.repeat(q_BTKGH.shape[0], 1, 1))
        heads.append(out_ZCGH.reshape(*q_BTKGH.shape[:2], *q_BTKGH.shape[3:]))
    return torch.stack(heads, dim=2)
