"""torch's cosine similarity; transformers dropped contrastive search in version 5."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.contrastive import CONTRASTIVE


@oracle(CONTRASTIVE, library="torch.nn.functional.cosine_similarity", needs=("torch",))
def contrastive(
    probability_BK: np.ndarray, candidate_BKD: np.ndarray, context_BSD: np.ndarray, *, alpha: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    h_BK1D, h_B1SD = torch.tensor(candidate_BKD)[:, :, None], torch.tensor(context_BSD)[:, None]
    likeness_BK = torch.nn.functional.cosine_similarity(h_BK1D, h_B1SD, dim=-1).max(dim=-1).values
    score_BK = (1 - alpha) * torch.tensor(probability_BK) - alpha * likeness_BK
    return score_BK.numpy(), score_BK.argmax(dim=-1).numpy()
