"""ZeRO: data parallelism that shards what every rank would otherwise hold again (Rajbhandari et al. 2019, arXiv:1910.02054).

Psi parameters, n ranks, r a rank's share of an array cut as `numpy.array_split` cuts it. Per stage, what a rank keeps between
steps and what it sends in one (section 7 of the paper; W and G are the bytes of all weights and all gradients):

| stage | weights | gradients | optimizer states | sends per step |
|---|---|---|---|---|
| 0 (DDP) | all | all | all | (n-1)/n 2 G: all-reduce |
| 1 | all | all | r | (n-1)/n (G + W): reduce-scatter gradients, all-gather weights |
| 2 | all | r | r | (n-1)/n (G + W) |
| 3 | r | r | r | (n-1)/n (G + 2 W): all-gather weights for forward and again for backward, 1.5 times stage 0 |

In mixed precision with Adam, weights and gradients are 2 bytes each and the optimizer holds a float32 copy of the weights and
two moments, 12 bytes: 16 Psi in all, 4 Psi + 12 Psi/n, 2 Psi + 14 Psi/n and 16 Psi/n by stage (figure 1). With offload
(ZeRO-Offload, arXiv:2101.06840) the optimizer states live in the host's memory and the step is taken there: gradients go down
and weights come up once a step, 4 Psi/n bytes a rank.
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
    gradients,
    same_training,
    shard_batch,
    step_cost,
    task,
    unflatten,
)
from llmlab.reference.parallel.collectives import ring_all_gather, ring_all_reduce, ring_reduce_scatter, split

STAGES = (0, 1, 2, 3)
PRECISIONS = {"mixed": (np.float16, np.float32), "float64": (np.float64, np.float64)}
"""Precision -> dtype of weights and gradients, dtype in which the optimizer works."""


def memory_bytes(
    stage: int,
    num_parameters: float,
    num_ranks: int,
    *,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    optimizer_bytes: float = 12,
    offload: bool = False,
) -> float:
    """Return the bytes of model states on each device, for parameters that the ranks divide.

    Raises:
        ValueError: an unknown stage or no rank.

    >>> [round(memory_bytes(stage, 7.5e9, 64) / 1e9, 1) for stage in (0, 1, 2, 3)]
    [120.0, 31.4, 16.6, 1.9]
    """
    _check(stage, num_ranks)
    share = [1 / num_ranks if stage >= first else 1 for first in (1, 2, 3)]
    optimizer = 0 if offload else optimizer_bytes * share[0]
    return num_parameters * (optimizer + gradient_bytes * share[1] + weight_bytes * share[2])


def sent_bytes(
    stage: int, num_parameters: float, num_ranks: int, *, weight_bytes: float = 2, gradient_bytes: float = 2
) -> float:
    """Return the bytes each rank sends in a step, for parameters that the ranks divide.

    Raises:
        ValueError: an unknown stage or no rank.

    >>> sent_bytes(3, 1000, 4) / sent_bytes(0, 1000, 4)
    1.5
    """
    _check(stage, num_ranks)
    gathers, scatters = ((0, 2), (1, 1), (1, 1), (2, 1))[stage]
    return (gathers * weight_bytes + scatters * gradient_bytes) * num_parameters * (num_ranks - 1) / num_ranks


def _check(stage: int, num_ranks: int) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage={stage} is none of {STAGES}")
    if num_ranks < 1:
        raise ValueError(f"num_ranks={num_ranks} < 1")


class Zero:
    """All ranks of one training run.

    Attributes:
        weights: per rank what it keeps of the flat weights: all of them, in stage 3 its share.
        gradients: per rank what it keeps of the flat gradients after a step.
        masters: per rank the weights in the optimizer's precision, its share (all in stage 0).
        traffic: what the ranks sent to each other.
        host_bytes: bytes that went between devices and host memory, both ways, over all ranks.
    """

    def __init__(
        self,
        weights: Sequence[np.ndarray],
        num_ranks: int,
        stage: int,
        *,
        optimizer: str = "adam",
        learning_rate: float = 0.1,
        precision: str = "float64",
        offload: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        """Lay the weights out.

        Raises:
            ValueError: an unknown stage, precision or optimizer, no rank, or offload in stage 0.
        """
        _check(stage, num_ranks)
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}")
        if offload and stage == 0:
            raise ValueError("stage=0 keeps the optimizer on every device: offload needs stage 1, 2 or 3")
        self.num_ranks, self.stage, self.offload = num_ranks, stage, offload
        self.low, self.high = PRECISIONS[precision]
        self.like, self.traffic, self.host_bytes = list(weights), Traffic() if traffic is None else traffic, 0
        flat = flatten(weights)
        shares = split(flat, num_ranks)
        kept = [flat] * num_ranks if stage == 0 else shares
        self.masters = [share.astype(self.high) for share in kept]
        self.optimizers = [Optimizer(optimizer, learning_rate, master) for master in self.masters]
        self.weights = [(shares[rank] if stage == 3 else flat).astype(self.low) for rank in range(num_ranks)]
        self.gradients = [np.zeros_like(own if stage < 2 else shares[rank], self.low) for rank, own in enumerate(self.weights)]

    def gathered(self) -> list[np.ndarray]:
        """Return to every rank the whole flat weights, sent only where they are sharded."""
        return ring_all_gather(self.weights, self.traffic) if self.stage == 3 else self.weights

    def step(self, batch: Batch) -> float:
        """Train on one batch; return the mean loss.

        Raises:
            ValueError: the ranks do not divide the batch.
        """
        parts = shard_batch(batch, self.num_ranks)
        self.gathered()  # for the forward pass; stage 3 drops them layer by layer ...
        whole = self.gathered()  # ... and gathers them again for the backward pass
        found = [gradients(unflatten(whole[rank], self.like), parts[rank]) for rank in range(self.num_ranks)]
        own = [flatten(gradient).astype(self.low) for _, gradient in found]
        if self.stage == 0:
            reduced = self.gradients = ring_all_reduce(own, self.traffic)
        else:
            reduced = ring_reduce_scatter(own, self.traffic)
            self.gradients = reduced if self.stage >= 2 else own
        for rank, optimizer in enumerate(self.optimizers):
            mean = reduced[rank].astype(self.high) / self.num_ranks
            self.masters[rank] = optimizer.step(self.masters[rank], mean)
        updated = [master.astype(self.low) for master in self.masters]
        if self.offload:
            self.host_bytes += sum(shard.nbytes for shard in reduced) + sum(shard.nbytes for shard in updated)
        self.weights = ring_all_gather(updated, self.traffic) if self.stage in (1, 2) else updated
        return float(np.mean([loss for loss, _ in found]))

    def device_bytes(self, rank: int) -> int:
        """Bytes of weights, gradients and optimizer states on a device between steps."""
        return self.weights[rank].nbytes + self.gradients[rank].nbytes + (0 if self.offload else self._optimizer_bytes(rank))

    def host_memory_bytes(self, rank: int) -> int:
        """Bytes of a rank's states in host memory."""
        return self._optimizer_bytes(rank) if self.offload else 0

    def _optimizer_bytes(self, rank: int) -> int:
        return self.masters[rank].nbytes + sum(array.nbytes for array in self.optimizers[rank].state)

    def full_weights(self) -> list[np.ndarray]:
        """Return the weights in their shapes, put together without counting what that would send."""
        flat = np.concatenate(self.weights) if self.stage == 3 else self.weights[0]
        return unflatten(flat, self.like)


def zero(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    stage: int,
    optimizer: str = "adam",
    learning_rate: float = 0.1,
    offload: bool = False,
    traffic: Traffic | None = None,
) -> dict[str, Any]:
    """Train for one step a batch in float64; return the weights and the mean loss of every step.

    Raises:
        ValueError: an unknown stage or optimizer, ranks that do not divide a batch, or offload in stage 0.

    >>> one = zero(weights=[np.ones((1, 1)), np.zeros(1)], batches=[(np.ones((2, 1)), np.zeros((2, 1)))], num_ranks=2, stage=3)
    >>> one["losses"], one["weights"][0].round(3).tolist()
    ([1.0], [[0.9]])
    """
    run = Zero(weights, num_ranks, stage, optimizer=optimizer, learning_rate=learning_rate, offload=offload, traffic=traffic)
    losses = [run.step(batch) for batch in batches]
    return {"weights": run.full_weights(), "losses": losses}


def zero_cost(d: Dims) -> Cost:
    """One step on N ranks, P parameters, B examples; stage 3: weights gathered twice, gradients scattered."""
    return step_cost(d, 3)


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a task, one to four ranks and a stage."""
    num_ranks, stage = int(rng.integers(1, 5)), int(rng.integers(0, 4))
    return {
        **task(rng, num_ranks),
        "num_ranks": num_ranks,
        "stage": stage,
        "offload": bool(stage > 0 and rng.random() < 0.3),
    }


ZERO = Procedure(reference=zero, examples=examples, paper="arXiv:1910.02054", same=same_training, cost=zero_cost)
