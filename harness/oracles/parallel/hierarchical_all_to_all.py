"""All-to-all by the library's own, over all ranks at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.hierarchical_all_to_all import HIERARCHICAL_ALL_TO_ALL


@oracle(HIERARCHICAL_ALL_TO_ALL, library="torch.distributed.all_to_all_single", needs=("torch",))
def all_to_all(*, blocks: Sequence[Sequence[np.ndarray]], ranks_per_node: int) -> list[list[np.ndarray]]:
    from llmlab.kernels.parallel import _world

    lengths = [[len(block) for block in row] for row in blocks]
    arguments = [{"row": list(row), "arriving": [own[rank] for own in lengths]} for rank, row in enumerate(blocks)]
    return _world.run(one_rank, arguments)


def one_rank(row: list[np.ndarray], arriving: list[int]) -> list[np.ndarray]:
    """Exchange blocks whose lengths all ranks know."""
    import torch
    import torch.distributed as dist

    received = torch.empty(sum(arriving), dtype=torch.float64)
    dist.all_to_all_single(received, torch.from_numpy(np.concatenate(row)), arriving, [len(block) for block in row])
    return [part.numpy() for part in torch.split(received, arriving)]
