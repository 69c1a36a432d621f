"""Contrastive scores over torch: one batched product of unit vectors, accumulated in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.contrastive import CONTRASTIVE, require_alpha


@twin(
    CONTRASTIVE,
    backend="torch",
    looser="a score is the difference of two terms of order one, and rounding does not shrink as they cancel",
    tolerance_factor=2.0,
)
def contrastive(
    probability_BK: Tensor, candidate_BKD: Tensor, context_BSD: Tensor, *, alpha: float = 0.6
) -> tuple[Tensor, Tensor]:
    require_alpha(alpha)
    likeness_BKS = _unit(candidate_BKD) @ _unit(context_BSD).transpose(1, 2)
    score_BK = (1 - alpha) * probability_BK.to(likeness_BKS.dtype) - alpha * likeness_BKS.amax(dim=-1)
    return score_BK.to(probability_BK.dtype), score_BK.argmax(dim=-1)


def _unit(x_BSD: Tensor) -> Tensor:
    wide_BSD = x_BSD.double() if x_BSD.dtype == torch.float64 else x_BSD.float()
    norm_BS1 = wide_BSD.square().sum(dim=-1, keepdim=True).sqrt()
    return wide_BSD / torch.where(norm_BS1 == 0, 1.0, norm_BS1)
