"""BigBird's attention by PyTorch's fused kernel: per head one call for the inner blocks, one for the two that see all."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._gathered_torch import CANCELS, attend_gathered
from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.bigbird import BIGBIRD, seen_blocks, tokens_per_block
from llmlab.reference.attention.block_sparse import table


@twin(BIGBIRD, backend="torch", looser=CANCELS, gradient_factor=4.0)
def bigbird(q_BTNH: Tensor, k_BTNH: Tensor, v_BTNH: Tensor, random_NMR: Tensor) -> Tensor:
    B, T, N, _ = q_BTNH.shape
    M = random_NMR.shape[1]
    C = tokens_per_block(T, M)
    ends = torch.cat([q_BTNH[:, :C], q_BTNH[:, C:][:, -C:]], dim=1)
    first, last = gqa(ends[..., None, :], k_BTNH, v_BTNH, causal=False)[..., 0, :].split([C, ends.shape[1] - C], dim=1)
    if M <= 2:
        return torch.cat([first, last], dim=1)
    inside_C = torch.arange(C, device=q_BTNH.device)
    heads = []
    for head in range(N):
        listed_QL = torch.from_numpy(table(seen_blocks(random_NMR[head].cpu().numpy())[1:-1])).to(q_BTNH.device)
        Q = len(listed_QL)
        keys_QS = (listed_QL.clamp(min=0)[:, :, None] * C + inside_C).flatten(1)
        seen_Q1S = (listed_QL >= 0).repeat_interleave(C, dim=1)[:, None]
        q_ZC1H = q_BTNH[:, C:-C, head].unflatten(1, (Q, C)).flatten(0, 1)[:, :, None]
        k_ZSH, v_ZSH = (x[:, keys_QS, head].flatten(0, 1) for x in (k_BTNH, v_BTNH))
        out_ZC1H = attend_gathered(q_ZC1H, k_ZSH, v_ZSH, seen_Q1S.expand(-1, C, -1).repeat(B, 1, 1))
        heads.append(out_ZC1H[:, :, 0].unflatten(0, (B, Q)).flatten(1, 2))
    return torch.cat([first, torch.stack(heads, dim=2), last], dim=1)
