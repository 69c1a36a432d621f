"""PyTorch's linear layer with autograd on one process, as oracle of parallel.tensor_3d."""

from __future__ import annotations

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._linear import linear
from llmlab.reference.parallel.tensor_3d import TENSOR_3D


@oracle(TENSOR_3D, library="torch.nn.functional.linear", needs=("torch",))
def one_process(*, side: int, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    return linear(**arrays)
