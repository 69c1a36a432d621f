"""Fully sharded data parallelism: each unit's weights are gathered when it runs and dropped after (arXiv:2304.11277).

Units are layers. A rank keeps its share of every unit's weights, gradients and optimizer states. Forward gathers a unit, runs
it and reshards it; backward gathers it again, runs it, and reduce-scatters its gradients. Units of W bytes in all, n ranks:

| reshard after forward | sends per step | gathered weights held at most |
|---|---|---|
| yes (ZeRO-3) | (n-1)/n 3 W | the largest unit |
| no (ZeRO-2 with sharded weights) | (n-1)/n 2 W | all units |

The last unit may stay gathered, since backward begins with it (`keep_last`, what FSDP2 does with its root).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Cost, Dims, Procedure
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel._training import (
    Batch,
    Optimizer,
    flatten,
    layer_backward,
    layer_forward,
    loss_of,
    same_training,
    shard_batch,
    step_cost,
    task,
    unflatten,
)
from llmlab.reference.parallel.collectives import ring_all_gather, ring_reduce_scatter, split


class Fsdp:
    """All ranks of one training run.

    Attributes:
        shards: per unit, per rank, its share of the unit's flat weights.
        traffic: what the ranks sent to each other.
        gathered_bytes: bytes of gathered weights a rank holds now.
        peak_gathered_bytes: the most it held at once.
    """

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        num_ranks: int,
        *,
        optimizer: str = "adam",
        learning_rate: float = 0.1,
        reshard_after_forward: bool = True,
        keep_last: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        """Shard every unit.

        Raises:
            ValueError: no rank, or an unknown optimizer.
        """
        if num_ranks < 1:
            raise ValueError(f"num_ranks={num_ranks} < 1")
        self.num_ranks, self.traffic = num_ranks, Traffic() if traffic is None else traffic
        self.like = [list(weights[place : place + 2]) for place in range(0, len(weights), 2)]
        self.shards = [split(flatten(unit), num_ranks) for unit in self.like]
        self.optimizers = [[Optimizer(optimizer, learning_rate, shard) for shard in unit] for unit in self.shards]
        last = len(self.like) - 1
        self.reshards = [reshard_after_forward and not (keep_last and unit == last) for unit in range(len(self.like))]
        self.whole: dict[int, list[list[np.ndarray]]] = {}
        self.gathered_bytes = self.peak_gathered_bytes = 0

    def gather(self, unit: int) -> list[list[np.ndarray]]:
        """Return a unit's weights to every rank; sends nothing where they are still there."""
        if unit not in self.whole:
            flats = ring_all_gather(self.shards[unit], self.traffic)
            self.whole[unit] = [unflatten(flat, self.like[unit]) for flat in flats]
            self.gathered_bytes += flats[0].nbytes
            self.peak_gathered_bytes = max(self.peak_gathered_bytes, self.gathered_bytes)
        return self.whole[unit]

    def reshard(self, unit: int) -> None:
        """Drop a unit's gathered weights."""
        self.gathered_bytes -= sum(array.nbytes for array in self.whole.pop(unit)[0])

    def step(self, batch: Batch) -> float:
        """Train on one batch; return the mean loss.

        Raises:
            ValueError: the ranks do not divide the batch.
        """
        ranks, last = range(self.num_ranks), len(self.like) - 1
        parts = shard_batch(batch, self.num_ranks)
        seen = [[x_BI] for x_BI, _ in parts]
        for unit in range(len(self.like)):
            weights = self.gather(unit)
            for rank in ranks:
                seen[rank].append(layer_forward(seen[rank][-1], *weights[rank], last=unit == last))
            if self.reshards[unit]:
                self.reshard(unit)
        ends = [loss_of(seen[rank][-1], parts[rank][1]) for rank in ranks]
        grads = [grad for _, grad in ends]
        for unit in reversed(range(len(self.like))):
            weights = self.gather(unit)
            found = []
            for rank in ranks:
                grads[rank], *own = layer_backward(
                    grads[rank], seen[rank][unit], seen[rank][unit + 1], weights[rank][0], last=unit == last
                )
                found.append(flatten(own))
            self.reshard(unit)
            for rank, total in enumerate(ring_reduce_scatter(found, self.traffic)):
                shard = self.shards[unit][rank]
                self.shards[unit][rank] = self.optimizers[unit][rank].step(shard, total / self.num_ranks)
        return float(np.mean([loss for loss, _ in ends]))

    def sharded_bytes(self, rank: int) -> int:
        """Bytes of weights and optimizer states a rank keeps between steps."""
        return sum(
            unit[rank].nbytes + sum(array.nbytes for array in optimizers[rank].state)
            for unit, optimizers in zip(self.shards, self.optimizers)
        )

    def full_weights(self) -> list[np.ndarray]:
        """Return the weights in their shapes, put together without counting what that would send."""
        return [array for like, unit in zip(self.like, self.shards) for array in unflatten(np.concatenate(unit), like)]


def fsdp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    optimizer: str = "adam",
    learning_rate: float = 0.1,
    reshard_after_forward: bool = True,
    traffic: Traffic | None = None,
) -> dict[str, Any]:
    """Train for one step a batch; return the weights and the mean loss of every step.

    Raises:
        ValueError: ranks that do not divide a batch, or an unknown optimizer.

    >>> one = fsdp(weights=[np.ones((1, 1)), np.zeros(1)], batches=[(np.ones((2, 1)), np.zeros((2, 1)))], num_ranks=2)
    >>> one["losses"], one["weights"][0].round(3).tolist()
    ([1.0], [[0.9]])
    """
    run = Fsdp(
        weights,
        num_ranks,
        optimizer=optimizer,
        learning_rate=learning_rate,
        reshard_after_forward=reshard_after_forward,
        traffic=traffic,
    )
    losses = [run.step(batch) for batch in batches]
    return {"weights": run.full_weights(), "losses": losses}


def fsdp_cost(d: Dims) -> Cost:
    """One step on N ranks, P parameters, B examples; weights gathered twice, gradients scattered."""
    return step_cost(d, 3)


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a task, one to four ranks, and whether units are resharded after forward."""
    num_ranks = int(rng.integers(1, 5))
    return {**task(rng, num_ranks), "num_ranks": num_ranks, "reshard_after_forward": bool(rng.random() < 0.5)}


FSDP = Procedure(reference=fsdp, examples=examples, paper="arXiv:2304.11277", same=same_training, cost=fsdp_cost)
