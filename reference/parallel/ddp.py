"""Data parallelism with bucketed, overlapped all-reduce (Li et al. 2020, arXiv:2006.15704).

Every rank holds all weights and a part of the batch. Gradients become ready from the last layer to the first; they are packed
into buckets in that order, and a full bucket is all-reduced while earlier layers still run backward. Every rank then takes the
same step. Per step a rank sends 2 (n-1)/n of the gradients' bytes, however they are cut into buckets; buckets change the number
of messages and how much of the transfer hides behind the backward pass.
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
from llmlab.reference.parallel.collectives import ring_all_reduce

FIRST_BUCKET_BYTES = 1 << 20
BUCKET_BYTES = 25 << 20


def assign_buckets(sizes_bytes: Sequence[int], limits: Sequence[int], kinds: Sequence[Any] | None = None) -> list[list[int]]:
    """Cut parameters, in order, into buckets as PyTorch does; return their indices.

    A bucket closes when it has reached its limit, so it may exceed it by all but one byte of its last member. The first bucket
    has the first limit, the next one the second, and so on; the last limit stays. Parameters of different kinds (dtype and
    device) fill buckets of their own, each with the limits from the start. Buckets are sorted by their first member.

    Raises:
        ValueError: no limit, a negative size, or kinds that are not one per size.

    >>> assign_buckets([4, 4, 4, 4, 4], [4, 8])
    [[0], [1, 2], [3, 4]]
    """
    kinds = [None] * len(sizes_bytes) if kinds is None else kinds
    if not limits or min(sizes_bytes, default=0) < 0 or len(kinds) != len(sizes_bytes):
        raise ValueError(f"limits={list(limits)}, {len(kinds)} kinds for sizes {list(sizes_bytes)}")
    buckets: list[list[int]] = []
    open_buckets: dict[Any, list[int]] = {}
    filled: dict[Any, int] = {}
    closed: dict[Any, int] = {}
    for index, (size, kind) in enumerate(zip(sizes_bytes, kinds)):
        open_buckets.setdefault(kind, []).append(index)
        filled[kind] = filled.get(kind, 0) + size
        if filled[kind] >= limits[min(closed.get(kind, 0), len(limits) - 1)]:
            buckets.append(open_buckets.pop(kind))
            filled[kind], closed[kind] = 0, closed.get(kind, 0) + 1
    return sorted([*buckets, *open_buckets.values()], key=min)


def overlapped(ready: Sequence[float], durations: Sequence[float]) -> list[tuple[float, float]]:
    """Return start and end of each bucket's all-reduce: when it is ready, and those before it are done.

    What the last one ends after the backward pass is the exposed communication.

    >>> overlapped([1, 2, 6], [3, 1, 2])
    [(1, 4), (4, 5), (6, 8)]
    """
    spans: list[tuple[float, float]] = []
    free: float = 0
    for start, duration in zip(ready, durations, strict=True):
        start = max(start, free)
        free = start + duration
        spans.append((start, free))
    return spans


def ddp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    optimizer: str = "sgd",
    learning_rate: float = 0.1,
    bucket_bytes: int = BUCKET_BYTES,
    first_bucket_bytes: int = FIRST_BUCKET_BYTES,
    traffic: Traffic | None = None,
) -> dict[str, Any]:
    """Train for one step a batch; return the weights of rank 0 (every rank's are equal) and the mean loss of every step.

    Raises:
        ValueError: ranks that do not divide a batch, or an unknown optimizer.

    >>> ddp(weights=[np.ones((1, 1)), np.zeros(1)], batches=[(np.ones((2, 1)), np.zeros((2, 1)))], num_ranks=2)["losses"]
    [1.0]
    """
    traffic = Traffic() if traffic is None else traffic
    ranks = [list(weights) for _ in range(num_ranks)]
    optimizers = [[Optimizer(optimizer, learning_rate, array) for array in weights] for _ in range(num_ranks)]
    backwards = range(len(weights) - 1, -1, -1)  # gradients become ready from the last parameter to the first
    cut = assign_buckets([weights[index].nbytes for index in backwards], [first_bucket_bytes, bucket_bytes])
    buckets = [[backwards[place] for place in bucket] for bucket in cut]
    losses = []
    for batch in batches:
        parts = shard_batch(batch, num_ranks)
        found = [gradients(ranks[rank], parts[rank]) for rank in range(num_ranks)]
        losses.append(float(np.mean([loss for loss, _ in found])))
        for bucket in buckets:
            members = [[own[index] for index in bucket] for _, own in found]
            sums = ring_all_reduce([flatten(arrays) for arrays in members], traffic)
            for rank, total in enumerate(sums):
                for index, gradient in zip(bucket, unflatten(total / num_ranks, members[rank])):
                    ranks[rank][index] = optimizers[rank][index].step(ranks[rank][index], gradient)
    return {"weights": ranks[0], "losses": losses}


def ddp_cost(d: Dims) -> Cost:
    """One step on N ranks, P parameters, B examples; all-reduced gradients."""
    return step_cost(d, 2)


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a task, one to four ranks, and buckets from one parameter each to one for all."""
    num_ranks = int(rng.integers(1, 5))
    return {
        **task(rng, num_ranks),
        "num_ranks": num_ranks,
        "bucket_bytes": int(rng.choice([1, 64, 200, 1 << 20])),
        "first_bucket_bytes": int(rng.choice([1, 100, 1 << 20])),
    }


DDP = Procedure(reference=ddp, examples=examples, paper="arXiv:2006.15704", same=same_training, cost=ddp_cost)
