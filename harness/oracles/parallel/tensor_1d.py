"""DTensor's column- and row-parallel modules over gloo processes, as oracle of parallel.tensor_1d."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._block import block_on_rank
from llmlab.kernels.parallel._world import run
from llmlab.reference.parallel.tensor_1d import TENSOR_1D


@oracle(TENSOR_1D, library="torch.distributed.tensor.parallel(ColwiseParallel, RowwiseParallel)", needs=("torch",))
def parallelized(*, num_ranks: int, **arrays: np.ndarray) -> dict[str, Any]:
    one = {"arrays": arrays, "num_ranks": num_ranks, "sequence": False}
    return run(block_on_rank, [one] * num_ranks)[0]
