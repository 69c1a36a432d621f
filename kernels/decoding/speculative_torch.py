"""Verification of guesses over torch: all sequences and guesses together, one gathered row each for the draw."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.decoding.sampling_torch import draw
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.speculative import SPECULATIVE


@twin(SPECULATIVE, backend="torch")
def speculative(draft_BK: Tensor, q_BKV: Tensor, p_BJV: Tensor, uniform_BJ: Tensor) -> tuple[Tensor, Tensor]:
    B, K = draft_BK.shape
    wide = torch.float64 if p_BJV.dtype == torch.float64 else torch.float32
    at_BK1 = draft_BK[..., None]
    q_BK, p_BK = (x.gather(-1, at_BK1)[..., 0].to(wide) for x in (q_BKV, p_BJV[:, :K]))
    uniform_BJ = uniform_BJ.to(wide)
    accepted_B = (uniform_BJ[:, :K] * q_BK < p_BK).long().cumprod(dim=1).sum(dim=1)
    row_B = torch.arange(B, device=draft_BK.device)
    p_BV = p_BJV[row_B, accepted_B].to(wide)
    q_BV = q_BKV[row_B, accepted_B.clamp(max=K - 1)].to(wide).masked_fill((accepted_B == K)[:, None], 0.0)
    token_B = draw(residual(p_BV, q_BV), uniform_BJ[:, K])
    place_J = torch.arange(K + 1, device=draft_BK.device)
    token_BJ = torch.where(place_J < accepted_B[:, None], torch.nn.functional.pad(draft_BK, (0, 1)), -1)
    return token_BJ.scatter(1, accepted_B[:, None], token_B[:, None]), accepted_B


def residual(p_BV: Tensor, q_BV: Tensor) -> Tensor:
    """max(0, p - q) of each row, or p where that is nothing."""
    left_BV = (p_BV - q_BV).clamp(min=0)
    return torch.where(left_BV.sum(dim=-1, keepdim=True) > 0, left_BV, p_BV)
