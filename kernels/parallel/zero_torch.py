"""ZeRO between real processes: one flat tensor, sharded as far as the stage says; shares offloaded to the CPU where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import tensor
from llmlab.kernels.parallel._shards_torch import gathered, my_share, reduced_share
from llmlab.kernels.parallel._training_torch import Step, arrays, loss_of, mean_over_ranks, my_part
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._training import Batch
from llmlab.reference.parallel.zero import ZERO


@twin(ZERO, backend="torch", dtypes=("float64",))
def zero(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    stage: int,
    optimizer: str = "adam",
    learning_rate: float = 0.1,
    offload: bool = False,
) -> dict[str, Any]:
    settings = {
        "weights": list(weights),
        "batches": list(batches),
        "stage": stage,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "offload": offload,
    }
    return _world.run(one_rank, [settings] * num_ranks)[0]


def one_rank(
    weights: Sequence[np.ndarray], batches: Sequence[Batch], stage: int, optimizer: str, learning_rate: float, offload: bool
) -> dict[str, Any]:
    """Train on this rank's share of every batch."""
    shapes = [array.shape for array in weights]
    flat = torch.cat([tensor(array).ravel() for array in weights])
    size, where = flat.numel(), flat.device

    def shaped(whole: torch.Tensor) -> list[torch.Tensor]:
        parts = torch.split(whole, [int(np.prod(shape)) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes)]

    master = (flat.clone() if stage == 0 else my_share(flat)).to("cpu" if offload else where)
    kept = master.to(where) if stage == 3 else flat  # what stays between steps
    step, losses = Step(optimizer, learning_rate, master), []
    for batch in batches:
        whole = (gathered(kept, size) if stage == 3 else kept).requires_grad_()
        loss = loss_of(shaped(whole), *my_part(batch))
        (gradient,) = torch.autograd.grad(loss, whole)
        if stage == 0:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        else:
            gradient = reduced_share(gradient)
        step(master, gradient.to(master.device))
        kept = gathered(master.to(where), size) if stage in (1, 2) else master.to(where, copy=True)
        losses.append(mean_over_ranks(loss))
    whole = gathered(kept, size) if stage == 3 else kept
    return {"weights": arrays(shaped(whole)), "losses": losses}
