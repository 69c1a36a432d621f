"""Routing decisions recomputed from the whole history at each request, without keeping any state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.router import ROUTER


@oracle(ROUTER, library="exact enumeration")
def route(
    *, policy: str, num_replicas: int, arrivals: Sequence[Sequence[int]], finish_after: Sequence[int], seed: int
) -> list[int]:
    count = len(arrivals)
    if policy == "round_robin":
        return (np.arange(count) % num_replicas).tolist()
    done_at = np.arange(count) + np.maximum(1, np.asarray(finish_after, dtype=int))
    draws = iter(np.random.default_rng(seed).random(2 * count))  # one draw per request, or two
    chosen = np.full(count, -1)
    for now in range(count):
        alive = done_at[:now] > now
        load = np.bincount(chosen[:now][alive], minlength=num_replicas)
        if policy == "least_outstanding":
            chosen[now] = np.argmin(load)
        elif policy == "prefix_affinity":
            ranked = []
            for replica in np.flatnonzero(load <= load.min() + 16):
                sent = {block for earlier in np.flatnonzero(chosen[:now] == replica) for block in arrivals[earlier]}
                hits = np.array([block in sent for block in arrivals[now]], dtype=int)
                ranked.append((-int(np.cumprod(hits).sum()), int(load[replica]), int(replica)))
            chosen[now] = sorted(ranked)[0][-1]
        else:
            first = int(np.floor(next(draws) * num_replicas))
            chosen[now] = first
            if policy == "power_of_two" and num_replicas > 1:
                others = [replica for replica in range(num_replicas) if replica != first]
                second = others[int(np.floor(next(draws) * len(others)))]
                chosen[now] = [first, second][int(load[second] < load[first])]
    return chosen.tolist()
