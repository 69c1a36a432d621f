"""PyTorch's attention of the whole sequence, as oracle of attention.ulysses."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.attention._whole import whole_sequence
from llmlab.reference.attention.ulysses import ULYSSES


@oracle(ULYSSES, library="torch.nn.functional.scaled_dot_product_attention of the whole sequence", needs=("torch",))
def scaled_dot_product(*, num_ranks: int, causal: bool = True, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    return whole_sequence(**arrays, causal=causal)
