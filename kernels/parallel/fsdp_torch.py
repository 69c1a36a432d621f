"""FSDP between real processes: a layer's weights are whole only while it runs, forward and again backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import tensor
from llmlab.kernels.parallel._shards_torch import gathered, my_share, reduced_share
from llmlab.kernels.parallel._training_torch import Step, arrays, mean_over_ranks, my_part
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._training import Batch
from llmlab.reference.parallel.fsdp import FSDP


@twin(FSDP, backend="torch", dtypes=("float64",))
def fsdp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    optimizer: str = "adam",
    learning_rate: float = 0.1,
    reshard_after_forward: bool = True,
) -> dict[str, Any]:
    settings = {
        "weights": list(weights),
        "batches": list(batches),
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "reshard_after_forward": reshard_after_forward,
    }
    return _world.run(one_rank, [settings] * num_ranks)[0]


class Unit:
    """One layer: this rank's share of its weight and bias, and the whole while it is needed."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, optimizer: str, learning_rate: float) -> None:
        self.shape = weight.shape
        flat = torch.cat([tensor(weight).ravel(), tensor(bias).ravel()])
        self.size, self.share = flat.numel(), my_share(flat)
        self.step = Step(optimizer, learning_rate, self.share)
        self.whole: torch.Tensor | None = None

    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias, gathered unless they are still here."""
        if self.whole is None:
            self.whole = gathered(self.share, self.size)
        inputs, outs = self.shape
        weight, bias = torch.split(self.whole, [inputs * outs, outs])
        return weight.view(self.shape), bias


def one_rank(
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    optimizer: str,
    learning_rate: float,
    reshard_after_forward: bool,
) -> dict[str, Any]:
    """Train on this rank's share of every batch."""
    units = [Unit(w, b, optimizer, learning_rate) for w, b in zip(weights[::2], weights[1::2])]
    losses = []
    for batch in batches:
        x, y = my_part(batch)
        seen = [x]
        for unit in units:
            weight, bias = unit.parts()
            out = torch.addmm(bias, seen[-1], weight)
            seen.append(out if unit is units[-1] else out.tanh())
            if reshard_after_forward:
                unit.whole = None
        difference = seen[-1] - y
        gradient = difference * (2 / difference.numel())
        for place in range(len(units) - 1, -1, -1):
            unit = units[place]
            weight, _ = unit.parts()
            if unit is not units[-1]:
                gradient = gradient * (1 - seen[place + 1] ** 2)
            own = torch.cat([(seen[place].T @ gradient).ravel(), gradient.sum(0)])
            gradient = gradient @ weight.T
            unit.whole = None
            unit.step(unit.share, reduced_share(own))
        losses.append(mean_over_ranks((difference**2).mean()))
    return {"weights": [array for unit in units for array in arrays(unit.parts())], "losses": losses}
