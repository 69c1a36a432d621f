"""PyTorch's attention of the whole sequence, as oracle of attention.ring."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._whole import whole_sequence
from llmlab.reference.attention.ring import RING


@oracle(RING, library="torch.nn.functional.scaled_dot_product_attention of the whole sequence", needs=("torch",))
def scaled_dot_product(
    *, num_ranks: int, causal: bool = True, layout: str = "contiguous", **arrays: np.ndarray
) -> dict[str, np.ndarray]:
    import torch

    q, k = torch.tensor(arrays["q_BTKGH"]), torch.tensor(arrays["k_BSKH"])
    scores = torch.einsum("btkgh,bskh->btkgs", q, k) / q.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(scores.shape[1], scores.shape[-1], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
    return {**whole_sequence(**arrays, causal=causal), "lse": torch.logsumexp(scores, -1).numpy()}
