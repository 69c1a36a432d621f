"""transformers' logits warpers in its own order; the draw by torch's cumulative sum and search."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.sampling import SAMPLING


@oracle(SAMPLING, library="transformers.generation.logits_process", needs=("torch", "transformers"))
def sampling(logits_BV: np.ndarray, uniform_B: np.ndarray, **options: float) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from transformers.generation import logits_process as warpers

    made = {
        "temperature": warpers.TemperatureLogitsWarper,
        "top_k": warpers.TopKLogitsWarper,
        "top_p": warpers.TopPLogitsWarper,
        "min_p": warpers.MinPLogitsWarper,
        "typical_p": warpers.TypicalLogitsWarper,
        "epsilon": warpers.EpsilonLogitsWarper,
        "eta": warpers.EtaLogitsWarper,
    }
    scores = torch.tensor(logits_BV)
    for name, warper in made.items():
        if name in options:
            scores = warper(options[name])(None, scores)
    probabilities = torch.softmax(scores, dim=-1)
    reached = probabilities.cumsum(dim=-1)
    token = torch.searchsorted(reached, torch.tensor(uniform_B)[:, None] * reached[:, -1:], right=True)[:, 0]
    return probabilities.numpy(), token.numpy()
