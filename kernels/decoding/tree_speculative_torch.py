"""Verification of token trees over torch: all sequences together, node after node; the host decides nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.decoding.sampling_torch import draw
from llmlab.kernels.decoding.speculative_torch import residual
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.tree_speculative import TREE_SPECULATIVE


@twin(TREE_SPECULATIVE, backend="torch")
def tree_speculative(
    parent_BN: Tensor, token_BN: Tensor, q_BNV: Tensor, p_BNV: Tensor, uniform_BN: Tensor
) -> tuple[Tensor, Tensor]:
    B, N = parent_BN.shape
    wide = torch.float64 if p_BNV.dtype == torch.float64 else torch.float32
    uniform_BN = uniform_BN.to(wide)
    path_BN = torch.full_like(parent_BN, -1)
    node_B = torch.zeros(B, dtype=parent_BN.dtype, device=parent_BN.device)
    depth_B = torch.ones_like(node_B)
    path_BN[:, 0] = 0
    left_BV = p_BNV[:, 0].to(wide)
    for n in range(1, N):
        q_BV, at_B1 = q_BNV[:, n].to(wide), token_BN[:, n, None]
        tried_B = parent_BN[:, n] == node_B
        holds_B = tried_B & (uniform_BN[:, n] * q_BV.gather(1, at_B1)[:, 0] < left_BV.gather(1, at_B1)[:, 0])
        rest_BV = residual(left_BV, q_BV)
        rest_BV = rest_BV / rest_BV.sum(dim=-1, keepdim=True)
        left_BV = torch.where((tried_B & ~holds_B)[:, None], rest_BV, left_BV)
        left_BV = torch.where(holds_B[:, None], p_BNV[:, n].to(wide), left_BV)
        here_B = torch.where(holds_B, n, path_BN.gather(1, depth_B.clamp(max=N - 1)[:, None])[:, 0])
        path_BN = path_BN.scatter(1, depth_B.clamp(max=N - 1)[:, None], here_B[:, None])
        node_B = torch.where(holds_B, n, node_B)
        depth_B = depth_B + holds_B
    return path_BN, draw(left_BV, uniform_BN[:, 0])
