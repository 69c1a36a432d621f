"""Data parallelism with parameter servers (Li et al. 2014, "Scaling distributed machine learning with the parameter server").

Servers hold the weights, each a share of the flat array; workers hold none between steps. In a step every worker pulls all
weights, computes the gradient of its part of the batch and pushes it; a server averages what it received, and steps. With w
workers, s servers and W bytes of weights, a worker receives W and sends W; a server sends and receives w W/s each: the traffic
of a single server grows with the workers, which is what ring all-reduce does away with. Ranks below w are workers.

A late worker's gradient may be used late: with `staleness` k, step t applies gradients of the weights after step t - k (stale
synchronous parallel, Ho et al. 2013); with 0 the result is that of one process.
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
    task,
    unflatten,
)
from llmlab.reference.parallel.collectives import split


def server_bytes(num_bytes: float, num_workers: int, num_servers: int = 1) -> float:
    """Return the bytes a server sends in a step (it receives as many), for weights that the servers divide.

    >>> server_bytes(1000, 8), server_bytes(1000, 8, num_servers=4)
    (8000.0, 2000.0)
    """
    return num_bytes * num_workers / num_servers


def dp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_workers: int,
    num_servers: int = 1,
    optimizer: str = "sgd",
    learning_rate: float = 0.1,
    staleness: int = 0,
    traffic: Traffic | None = None,
) -> dict[str, Any]:
    """Train for one step a batch; return the servers' weights and the mean loss of every step.

    Raises:
        ValueError: workers that do not divide a batch, no server, a negative staleness or an unknown optimizer.

    >>> dp(weights=[np.ones((1, 1)), np.zeros(1)], batches=[(np.ones((2, 1)), np.zeros((2, 1)))], num_workers=2)["losses"]
    [1.0]
    """
    if num_workers < 1 or num_servers < 1 or staleness < 0:
        raise ValueError(f"num_workers={num_workers}, num_servers={num_servers}, staleness={staleness}")
    traffic = Traffic() if traffic is None else traffic
    shares = split(flatten(weights), num_servers)
    optimizers = [Optimizer(optimizer, learning_rate, share) for share in shares]
    history = [shares]
    losses = []
    for batch in batches:
        parts = shard_batch(batch, num_workers)
        served = history[max(0, len(history) - 1 - staleness)]
        pushed: list[list[np.ndarray]] = [[] for _ in range(num_servers)]
        step_losses = []
        for worker, part in enumerate(parts):
            pulled = [traffic.send(share, num_workers + server, worker) for server, share in enumerate(served)]
            loss, found = gradients(unflatten(np.concatenate(pulled), weights), part)
            step_losses.append(loss)
            for server, piece in enumerate(split(flatten(found), num_servers)):
                pushed[server].append(traffic.send(piece, worker, num_workers + server))
        # Each way takes as many rounds as the busier side has partners: a rank sends one message a round.
        traffic.end_round(2 * max(num_workers, num_servers))
        means = [np.sum(pieces, axis=0) / num_workers for pieces in pushed]
        history.append([one.step(share, mean) for one, share, mean in zip(optimizers, history[-1], means)])
        losses.append(float(np.mean(step_losses)))
    return {"weights": unflatten(np.concatenate(history[-1]), weights), "losses": losses}


def dp_cost(d: Dims) -> Cost:
    """One step of N workers, P parameters, B examples: every worker pulls and pushes all weights."""
    moved = 2 * d["N"] * d["P"]
    return Cost(flops=6 * d["P"] * d["B"], elements_read=moved, elements_written=moved)


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a task, one to three workers, and a server or two."""
    num_workers = int(rng.integers(1, 4))
    return {
        **task(rng, num_workers),
        "num_workers": num_workers,
        "num_servers": int(rng.integers(1, 3)) if num_workers < 3 else 1,
        "staleness": int(rng.integers(0, 3)) if rng.random() < 0.3 else 0,
    }


DP = Procedure(
    reference=dp,
    examples=examples,
    paper="Li et al. 2014, OSDI, Scaling distributed machine learning with the parameter server",
    same=same_training,
    cost=dp_cost,
)
