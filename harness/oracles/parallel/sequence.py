"""DTensor's sequence-parallel norms between column- and row-parallel modules, as oracle of parallel.sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._block import block_on_rank
from llmlab.kernels.parallel._world import run
from llmlab.reference.parallel.sequence import SEQUENCE


@oracle(SEQUENCE, library="torch.distributed.tensor.parallel(SequenceParallel)", needs=("torch",))
def parallelized(*, num_ranks: int, keep_fraction: float, store_gathered: bool, **arrays: np.ndarray) -> dict[str, Any]:
    given = {**arrays, "scale_1": np.array(1 / keep_fraction)}
    one = {"arrays": given, "num_ranks": num_ranks, "sequence": True}
    return run(block_on_rank, [one] * num_ranks)[0]
