"""torch's log-softmax and stable sort."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.beam import BEAM


@oracle(BEAM, library="torch.log_softmax and torch.sort", needs=("torch",))
def beam(
    logits_BNV: np.ndarray, score_BN: np.ndarray, taken_BV: np.ndarray, *, diversity: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import torch

    _, N, V = logits_BNV.shape
    score_BX = (torch.log_softmax(torch.tensor(logits_BNV), -1) + torch.tensor(score_BN)[..., None]).flatten(1)
    rank_BX = score_BX - diversity * torch.tensor(taken_BV).repeat(1, N)
    best_BM = rank_BX.sort(dim=1, descending=True, stable=True).indices[:, : 2 * N]
    score_BM = score_BX.gather(1, best_BM)
    return score_BM.numpy(), (best_BM // V).numpy(), (best_BM % V).numpy()
