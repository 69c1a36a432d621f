"""PyTorch's linear layer with autograd on one process, as oracle of parallel.tensor_2_5d."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._linear import linear
from llmlab.reference.parallel.tensor_2_5d import TENSOR_2_5D


@oracle(TENSOR_2_5D, library="torch.nn.functional.linear", needs=("torch",))
def one_process(*, side: int, depth: int, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    return linear(**arrays)
