"""Request routers: which replica takes the next request.

A router is a state machine without a clock: `route(request)` names a replica, `finished(replica)` tells it that one of that
replica's requests is done. It knows what a gateway knows, the requests it sent and not yet got back.

- round_robin: replicas in turn (Nagle 1987, "On packet switches with infinite storage").
- random: one uniform draw per request.
- least_outstanding: the replica with the fewest unfinished requests ("join the shortest queue", Winston 1977).
- power_of_two: the less loaded of two replicas drawn at random (Mitzenmacher 2001, "The power of two choices in
  randomized load balancing").
- prefix_affinity: the replica that was sent the longest prefix of this prompt, unless it is too far ahead of the least
  loaded one (Preble, arXiv:2407.00023; the cache-aware router of SGLang, arXiv:2312.07104).

Ties go to the fewest outstanding requests, then to the lowest replica number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving._request import Request


class RoundRobin:
    """Replicas in turn, whatever their load."""

    def __init__(self, num_replicas: int) -> None:
        self.outstanding = [0] * num_replicas
        self.next = 0

    def choose(self, request: Request) -> int:
        """Return the replica for this request, without counting it."""
        chosen = self.next
        self.next = (chosen + 1) % len(self.outstanding)
        return chosen

    def route(self, request: Request) -> int:
        """Choose a replica and count the request as outstanding there."""
        chosen = self.choose(request)
        self.outstanding[chosen] += 1
        return chosen

    def finished(self, replica: int) -> None:
        """One request of `replica` is done.

        Raises:
            ValueError: the replica has nothing outstanding.
        """
        if self.outstanding[replica] < 1:
            raise ValueError(f"replica={replica} has no outstanding request")
        self.outstanding[replica] -= 1


class LeastOutstanding(RoundRobin):
    """Fewest unfinished requests first."""

    def choose(self, request: Request) -> int:
        """Return the least loaded replica."""
        return self.outstanding.index(min(self.outstanding))


class Random(RoundRobin):
    """One uniform draw per request."""

    def __init__(self, num_replicas: int, rng: np.random.Generator) -> None:
        super().__init__(num_replicas)
        self.rng = rng

    def choose(self, request: Request) -> int:
        """Return a replica drawn uniformly."""
        return int(self.rng.random() * len(self.outstanding))


class PowerOfTwo(Random):
    """The less loaded of two different replicas drawn at random; the first drawn wins a tie."""

    def choose(self, request: Request) -> int:
        """Draw two (one, where there is only one) and return the less loaded."""
        first = super().choose(request)
        if len(self.outstanding) == 1:
            return first
        second = int(self.rng.random() * (len(self.outstanding) - 1))
        second += second >= first
        return second if self.outstanding[second] < self.outstanding[first] else first


class PrefixAffinity(LeastOutstanding):
    """Longest prefix already sent there, as long as the load stays balanced.

    Attributes:
        balance: how many requests a replica may have outstanding beyond the least loaded one and still be preferred.
        capacity_blocks: prefix blocks remembered per replica, least recently sent forgotten first.
    """

    def __init__(self, num_replicas: int, *, balance: int = 16, capacity_blocks: int = 1 << 16) -> None:
        super().__init__(num_replicas)
        self.balance, self.capacity_blocks = balance, capacity_blocks
        self.sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(num_replicas)]

    def matched(self, replica: int, hashes: Sequence[int]) -> int:
        """Count the leading blocks that were sent to `replica` before."""
        known = self.sent[replica]
        return next((count for count, block in enumerate(hashes) if block not in known), len(hashes))

    def choose(self, request: Request) -> int:
        """Return the replica with the longest match among those not too far ahead."""
        hashes = request.block_hashes
        limit = min(self.outstanding) + self.balance
        chosen = min(
            (replica for replica, load in enumerate(self.outstanding) if load <= limit),
            key=lambda replica: (-self.matched(replica, hashes), self.outstanding[replica], replica),
        )
        known = self.sent[chosen]
        for block in hashes:
            known[block] = None
            known.move_to_end(block)
        while len(known) > self.capacity_blocks:
            known.popitem(last=False)
        return chosen


Router = RoundRobin
"""Every router has `route`, `finished` and `outstanding`."""

ROUTERS: Mapping[str, Callable[[int, np.random.Generator], Router]] = {
    "round_robin": lambda num_replicas, rng: RoundRobin(num_replicas),
    "least_outstanding": lambda num_replicas, rng: LeastOutstanding(num_replicas),
    "random": Random,
    "power_of_two": PowerOfTwo,
    "prefix_affinity": lambda num_replicas, rng: PrefixAffinity(num_replicas),
}


def make_router(policy: str, num_replicas: int, rng: np.random.Generator) -> Router:
    """Return a fresh router.

    Raises:
        ValueError: unknown policy, or fewer than one replica.
    """
    if policy not in ROUTERS:
        raise ValueError(f"policy={policy!r} is none of {', '.join(ROUTERS)}")
    if num_replicas < 1:
        raise ValueError(f"num_replicas={num_replicas} < 1")
    return ROUTERS[policy](num_replicas, rng)


def route(
    *, policy: str, num_replicas: int, arrivals: Sequence[Sequence[int]], finish_after: Sequence[int], seed: int
) -> list[int]:
    """Route a list of requests; return the replica of each.

    Request i has the prefix blocks `arrivals[i]` and is done when `finish_after[i]` further requests have arrived (before
    the next one is routed).

    Raises:
        ValueError: unknown policy, fewer than one replica, or lists of different lengths.

    >>> route(policy="round_robin", num_replicas=2, arrivals=[[], [], []], finish_after=[9, 9, 9], seed=0)
    [0, 1, 0]
    >>> route(policy="least_outstanding", num_replicas=2, arrivals=[[], [], []], finish_after=[9, 1, 9], seed=0)
    [0, 1, 1]
    """
    if len(arrivals) != len(finish_after):
        raise ValueError(f"len(arrivals)={len(arrivals)} != len(finish_after)={len(finish_after)}")
    router = make_router(policy, num_replicas, np.random.default_rng(seed))
    chosen: list[int] = []
    for now, hashes in enumerate(arrivals):
        for earlier, replica in enumerate(chosen):
            if earlier + max(1, finish_after[earlier]) == now:
                router.finished(replica)
        chosen.append(router.route(Request(now, len(hashes) + 1, 1, tuple(hashes))))
    return chosen


def route_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a policy and up to 40 requests, some of which share prefixes."""
    num_requests = int(rng.integers(0, 41))
    return {
        "policy": str(rng.choice(list(ROUTERS))),
        "num_replicas": int(rng.integers(1, 6)),
        "arrivals": [[int(rng.integers(3)) * 100 + depth for depth in range(rng.integers(0, 4))] for _ in range(num_requests)],
        "finish_after": rng.integers(1, 12, num_requests).tolist(),
        "seed": int(rng.integers(2**31)),
    }


ROUTER = Procedure(reference=route, examples=route_examples, paper="Mitzenmacher 2001, doi:10.1109/71.963420")
