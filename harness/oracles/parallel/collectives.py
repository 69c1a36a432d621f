"""Collectives by the library's own: gloo between real processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.collectives import COLLECTIVES


@oracle(COLLECTIVES, library="torch.distributed all_reduce, all_gather, broadcast, all_to_all", needs=("torch",))
def collective(
    *, operation: str, algorithm: str, parts: Sequence[np.ndarray], ranks_per_node: int = 1, root: int = 0
) -> list[np.ndarray]:
    from llmlab.kernels.parallel import _world

    return _world.run(one_rank, [{"operation": operation, "part": part, "root": root} for part in parts])


def one_rank(operation: str, part: np.ndarray, root: int) -> np.ndarray:
    """Call the collective of that name; chunks that differ in size go as `array_split` cuts them."""
    import torch
    import torch.distributed as dist

    n, me, mine = dist.get_world_size(), dist.get_rank(), torch.from_numpy(part.copy())
    if operation in ("all_reduce", "reduce_scatter"):
        dist.all_reduce(mine)
        return mine.numpy() if operation == "all_reduce" else np.array_split(mine.numpy().ravel(), n)[me]
    if operation == "broadcast":
        dist.broadcast(mine, root)
        return mine.numpy()
    if operation == "all_gather":
        gathered = [torch.empty_like(mine) for _ in range(n)]
        dist.all_gather(gathered, mine)
        return torch.cat([one.ravel() for one in gathered]).numpy()
    lengths = [len(chunk) for chunk in np.array_split(part.ravel(), n)]
    received = torch.empty(n * lengths[me], dtype=mine.dtype)
    dist.all_to_all_single(received, mine.ravel(), [lengths[me]] * n, lengths)
    return received.numpy()
