"""A beam step over torch: log-softmax and one top-k over all beams of a sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.beam import BEAM, require_diversity


@twin(BEAM, backend="torch", dtypes=("float64", "float32"))
def beam(logits_BNV: Tensor, score_BN: Tensor, taken_BV: Tensor, *, diversity: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    require_diversity(diversity)
    _, N, V = logits_BNV.shape
    score_BNV = logits_BNV.log_softmax(dim=-1) + score_BN[..., None]
    rank_BX = (score_BNV - diversity * taken_BV[:, None]).flatten(1) if diversity else score_BNV.flatten(1)
    given = min(2 * N, N * V)
    best_BM = rank_BX.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).topk(given, dim=1).indices
    score_BM = score_BNV.flatten(1).gather(1, best_BM)
    missing = (0, 2 * N - given)
    origin_BM, token_BM = (F.pad(x, missing, value=-1) for x in (best_BM // V, best_BM % V))
    return F.pad(score_BM, missing, value=-torch.inf), origin_BM, token_BM
