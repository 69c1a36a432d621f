"""The small network of the data-parallel twins on one rank: weights [W0, b0, W1, b1, ...], tanh between layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel._ranks_torch import tensor
from llmlab.reference.parallel._training import Batch, shard_batch


def loss_of(weights: Sequence[torch.Tensor], x_BI: torch.Tensor, y_BO: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error."""
    out = x_BI
    for layer in range(0, len(weights), 2):
        out = torch.addmm(weights[layer + 1], out, weights[layer])
        out = out.tanh() if layer + 2 < len(weights) else out
    return torch.nn.functional.mse_loss(out, y_BO)


def my_part(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's share of a batch."""
    x_BI, y_BO = shard_batch(batch, dist.get_world_size())[dist.get_rank()]
    return tensor(x_BI), tensor(y_BO)


def mean_over_ranks(loss: torch.Tensor) -> float:
    """Return the mean of a number over the ranks."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


class Step:
    """SGD or Adam on one tensor, in place."""

    def __init__(self, name: str, learning_rate: float, weights: torch.Tensor) -> None:
        self.name, self.learning_rate, self.steps = name, learning_rate, 0
        self.mean, self.square = (torch.zeros_like(weights) for _ in range(2)) if name == "adam" else (weights, weights)

    @torch.no_grad()
    def __call__(self, weights: torch.Tensor, gradient: torch.Tensor) -> None:
        """Take one step along the gradient."""
        if self.name == "sgd":
            weights.sub_(gradient, alpha=self.learning_rate)
            return
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient * gradient, 0.001)
        scale = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        weights.addcdiv_(self.mean, scale, value=-self.learning_rate / (1 - 0.9**self.steps))


def arrays(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Return tensors as arrays on the CPU."""
    return [one.detach().cpu().numpy() for one in tensors]
