"""Typical acceptance over torch: all nodes' entropies at once, then depths from parent to child."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.medusa import MEDUSA


@twin(MEDUSA, backend="torch")
def medusa(
    parent_BN: Tensor, token_BN: Tensor, p_BNV: Tensor, *, epsilon: float = 0.09, delta: float = 0.3
) -> tuple[Tensor, Tensor]:
    if not (0 <= epsilon <= 1 and 0 <= delta <= 1):
        raise ValueError(f"{epsilon=}, {delta=}: must lie between 0 and 1")
    N = parent_BN.shape[1]
    wide_BNV = p_BNV.double() if p_BNV.dtype == torch.float64 else p_BNV.float()
    threshold_BN = (delta * (-torch.special.entr(wide_BNV).sum(-1)).exp()).clamp(max=epsilon)
    above_BN = parent_BN.clamp(min=0)
    p_BN = wide_BNV.gather(1, above_BN[..., None].expand_as(wide_BNV)).gather(2, token_BN[..., None])[..., 0]
    typical_BN = (parent_BN >= 0) & (p_BN > threshold_BN.gather(1, above_BN))
    log_BN = p_BN.log().double()
    length_BN = torch.zeros_like(parent_BN)
    likelihood_BN = torch.zeros_like(log_BN)
    length_BN[:, 0] = 1
    for n in range(1, N):
        at_B1 = above_BN[:, n, None]
        length_B, likelihood_B = length_BN.gather(1, at_B1)[:, 0], likelihood_BN.gather(1, at_B1)[:, 0]
        holds_B = typical_BN[:, n] & (length_B > 0)
        length_BN[:, n] = torch.where(holds_B, length_B + 1, 0)
        likelihood_BN[:, n] = torch.where(holds_B, likelihood_B + log_BN[:, n], 0.0)
    longest_B1 = length_BN.max(dim=1, keepdim=True).values
    best_B = likelihood_BN.masked_fill(length_BN < longest_B1, -torch.inf).argmax(dim=1)
    last_BV = p_BNV[torch.arange(len(best_B), device=best_B.device), best_B]
    path_BN = torch.full_like(parent_BN, -1)
    node_B = best_B
    for back in range(N):
        depth_B1 = longest_B1 - 1 - back
        shown_BN = torch.arange(N, device=parent_BN.device) == depth_B1
        path_BN = torch.where(shown_BN, node_B[:, None], path_BN)
        node_B = above_BN.gather(1, node_B[:, None])[:, 0]
    return path_BN, last_BV.argmax(dim=-1)
