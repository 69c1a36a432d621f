"""Routing decisions recomputed from the whole history at each request, without keeping any state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.router import ROUTER


@oracle(ROUTER, library="exact enumeration")
def route(
    *,
    policy: str,
    num_replicas: int,
    arrivals: Sequence[Sequence[int]],
    finish_after: Sequence[int],
    seed: int,
    stale: int = 0,
    outages: Sequence[tuple[int, int, int]] = (),
) -> list[int]:
    count = len(arrivals)
    done_at = np.arange(count) + np.maximum(1, np.asarray(finish_after, dtype=int))
    draws = iter(np.random.default_rng(seed).random(2 * count))  # one draw per request, or two
    chosen = np.full(count, -1)
    for now in range(count):
        down = {replica for replica, first, last in outages if first <= now < last}
        may = np.array([replica for replica in range(num_replicas) if replica not in down])
        sent_by, done_by = (now, now) if not stale else (now - stale + 1, now - stale)
        known = np.arange(count) < max(0, min(now, sent_by))
        alive = known & (done_at > done_by)
        load = np.bincount(chosen[alive], minlength=num_replicas)
        if policy == "round_robin":
            after = (chosen[now - 1] + 1) % num_replicas if now else 0
            chosen[now] = min(may, key=lambda replica: (replica - after) % num_replicas)
        elif policy == "least_outstanding":
            chosen[now] = may[np.argmin(load[may])]
        elif policy in ("prefix_affinity", "kv_aware"):
            ranked = []
            for replica in may:
                forgotten = max([first for r, first, last in outages if r == replica and first < last and first <= now] + [0])
                own = np.flatnonzero(chosen[:now] == replica)
                sent = {block for earlier in own[own >= forgotten] for block in arrivals[earlier]}
                hits = int(np.cumprod(np.array([block in sent for block in arrivals[now]], dtype=int)).sum())
                if policy == "kv_aware":
                    missing = 16 * (len(arrivals[now]) - hits) + 1
                    ranked.append((256 * int(load[replica]) + missing, int(load[replica]), int(replica)))
                elif load[replica] <= load[may].min() + 16:
                    ranked.append((-hits, int(load[replica]), int(replica)))
            chosen[now] = sorted(ranked)[0][-1]
        else:
            first = int(may[int(np.floor(next(draws) * len(may)))])
            chosen[now] = first
            if policy == "power_of_two" and len(may) > 1:
                others = [replica for replica in may if replica != first]
                second = int(others[int(np.floor(next(draws) * len(others)))])
                chosen[now] = [first, second][int(load[second] < load[first])]
    return chosen.tolist()
