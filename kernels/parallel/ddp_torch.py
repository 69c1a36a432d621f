"""Data parallelism between real processes: a hook per parameter starts a bucket's all-reduce while backward goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import tensor
from llmlab.kernels.parallel._training_torch import Step, arrays, loss_of, mean_over_ranks, my_part
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._training import Batch
from llmlab.reference.parallel.ddp import BUCKET_BYTES, DDP, FIRST_BUCKET_BYTES, assign_buckets


@twin(DDP, backend="torch", dtypes=("float64",))
def ddp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    optimizer: str = "sgd",
    learning_rate: float = 0.1,
    bucket_bytes: int = BUCKET_BYTES,
    first_bucket_bytes: int = FIRST_BUCKET_BYTES,
) -> dict[str, Any]:
    settings = {
        "weights": list(weights),
        "batches": list(batches),
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "limits": [first_bucket_bytes, bucket_bytes],
    }
    return _world.run(one_rank, [settings] * num_ranks)[0]


class Buckets:
    """All-reduces each bucket of gradients as soon as its last member is ready."""

    def __init__(self, weights: Sequence[torch.Tensor], limits: Sequence[int]) -> None:
        self.weights = list(reversed(weights))
        sizes = [weight.numel() * weight.element_size() for weight in self.weights]
        self.buckets = assign_buckets(sizes, limits)
        self.running: list[tuple[list[int], torch.Tensor, Any]] = []
        self.missing: list[int] = []
        for number, bucket in enumerate(self.buckets):
            for place in bucket:
                self.weights[place].register_post_accumulate_grad_hook(lambda _, number=number: self.ready(number))

    def start(self) -> None:
        """Forget the last step's gradients."""
        self.running, self.missing = [], [len(bucket) for bucket in self.buckets]
        for weight in self.weights:
            weight.grad = None

    def ready(self, number: int) -> None:
        """One gradient of this bucket is there; start what is complete, in the order all ranks agree on."""
        self.missing[number] -= 1
        while len(self.running) < len(self.buckets) and self.missing[len(self.running)] == 0:
            bucket = self.buckets[len(self.running)]
            flat = torch.cat([self.weights[place].grad.ravel() for place in bucket])  # type: ignore[union-attr]
            self.running.append((bucket, flat, dist.all_reduce(flat, async_op=True)))

    def wait(self) -> list[torch.Tensor]:
        """Return the mean gradients, in the order of the weights."""
        means: dict[int, torch.Tensor] = {}
        for bucket, flat, work in self.running:
            work.wait()
            shares = torch.split(flat / dist.get_world_size(), [self.weights[place].numel() for place in bucket])
            means |= {place: share.view_as(self.weights[place]) for place, share in zip(bucket, shares)}
        return [means[place] for place in range(len(self.weights) - 1, -1, -1)]


def one_rank(
    weights: Sequence[np.ndarray], batches: Sequence[Batch], optimizer: str, learning_rate: float, limits: Sequence[int]
) -> dict[str, Any]:
    """Train on this rank's share of every batch."""
    held = [tensor(array).requires_grad_() for array in weights]
    steps = [Step(optimizer, learning_rate, weight.detach()) for weight in held]
    buckets = Buckets(held, limits)
    losses = []
    for batch in batches:
        buckets.start()
        loss = loss_of(held, *my_part(batch))
        loss.backward()
        for weight, step, gradient in zip(held, steps, buckets.wait(), strict=True):
            step(weight, gradient)
        losses.append(mean_over_ranks(loss))
    return {"weights": arrays(held), "losses": losses}
