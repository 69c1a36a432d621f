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
- kv_aware: the replica with the least work ahead of this request: what an outstanding request is worth in prompt tokens,
  times their number, plus the prompt tokens not sent there before (the conductor of Mooncake, arXiv:2407.00079).

Ties go to the fewest outstanding requests, then to the lowest replica number.

Two things may be held from a router. A replica that is not `up` is never chosen. And with `stale` > 0 it decides by reports
that are so old: it sees the outstanding requests as they were `stale` ago in whatever unit `now` is set in (Mitzenmacher 2000,
"How useful is old information?").
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving._request import Request


class RoundRobin:
    """Replicas in turn, whatever their load.

    Attributes:
        outstanding: unfinished requests per replica.
        seen: the same as this router knows it; the same list unless `delay` was called.
        up: which replicas may be chosen; change it through `allow`.
        now: the instant of the next call, set by whoever has a clock; matters only after `delay`.
    """

    def __init__(self, num_replicas: int) -> None:
        self.outstanding = [0] * num_replicas
        self.seen = self.outstanding
        self.up = [True] * num_replicas
        self.candidates: Sequence[int] = range(num_replicas)
        self.now = self.stale = 0
        self.reports: deque[tuple[int, int, int]] = deque()  # (when, replica, change)
        self.next = 0

    def delay(self, stale: int) -> None:
        """Decide by reports that are `stale` old from now on.

        Raises:
            ValueError: a negative age, or requests were routed before.
        """
        if stale < 0 or any(self.outstanding):
            raise ValueError(f"stale={stale} must not be negative, and nothing may be outstanding yet")
        self.stale = stale
        self.seen = [0] * len(self.outstanding) if stale else self.outstanding

    def allow(self, replica: int, up: bool) -> None:
        """Let a replica be chosen, or not."""
        self.up[replica] = up
        self.candidates = [number for number, may in enumerate(self.up) if may]

    def lost(self, replica: int) -> None:
        """The cache of a replica is gone; a router that remembers prefixes forgets them."""

    def choose(self, request: Request) -> int:
        """Return the replica for this request, without counting it."""
        chosen = self.next
        while not self.up[chosen]:
            chosen = (chosen + 1) % len(self.up)
        self.next = (chosen + 1) % len(self.outstanding)
        return chosen

    def route(self, request: Request) -> int:
        """Choose a replica that is up and count the request as outstanding there.

        Raises:
            ValueError: none is up.
        """
        if not self.candidates:
            raise ValueError("no replica is up")
        if self.stale:
            self.catch_up()
        chosen = self.choose(request)
        self.outstanding[chosen] += 1
        if self.stale:
            self.reports.append((self.now, chosen, 1))
        return chosen

    def catch_up(self) -> None:
        """Apply the reports that are old enough to be known."""
        while self.reports and self.reports[0][0] <= self.now - self.stale:
            _, replica, change = self.reports.popleft()
            self.seen[replica] += change

    def finished(self, replica: int) -> None:
        """One request of `replica` is done.

        Raises:
            ValueError: the replica has nothing outstanding.
        """
        if self.outstanding[replica] < 1:
            raise ValueError(f"replica={replica} has no outstanding request")
        self.outstanding[replica] -= 1
        if self.stale:
            self.reports.append((self.now, replica, -1))


class LeastOutstanding(RoundRobin):
    """Fewest unfinished requests first."""

    def choose(self, request: Request) -> int:
        """Return the least loaded replica."""
        if len(self.candidates) < len(self.seen):
            return min(self.candidates, key=self.seen.__getitem__)
        return self.seen.index(min(self.seen))


class Random(RoundRobin):
    """One uniform draw per request."""

    def __init__(self, num_replicas: int, rng: np.random.Generator) -> None:
        super().__init__(num_replicas)
        self.rng = rng

    def choose(self, request: Request) -> int:
        """Return a replica drawn uniformly."""
        return self.candidates[int(self.rng.random() * len(self.candidates))]


class PowerOfTwo(Random):
    """The less loaded of two different replicas drawn at random; the first drawn wins a tie."""

    def choose(self, request: Request) -> int:
        """Draw two (one, where there is only one) and return the less loaded."""
        candidates, seen = self.candidates, self.seen
        place = int(self.rng.random() * len(candidates))
        first = candidates[place]
        if len(candidates) == 1:
            return first
        other = int(self.rng.random() * (len(candidates) - 1))
        second = candidates[other + (other >= place)]
        return second if seen[second] < seen[first] else first


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
        hashes, seen = request.block_hashes, self.seen
        limit = min(seen[replica] for replica in self.candidates) + self.balance
        chosen = min(
            (replica for replica in self.candidates if seen[replica] <= limit),
            key=lambda replica: (-self.matched(replica, hashes), seen[replica], replica),
        )
        self.remember(chosen, hashes)
        return chosen

    def remember(self, replica: int, hashes: Sequence[int]) -> None:
        """Note what was sent."""
        known = self.sent[replica]
        for block in hashes:
            known[block] = None
            known.move_to_end(block)
        while len(known) > self.capacity_blocks:
            known.popitem(last=False)

    def lost(self, replica: int) -> None:
        """Forget what was sent to this replica."""
        self.sent[replica].clear()


class KVAware(PrefixAffinity):
    """Least work ahead: outstanding requests, each worth `queue_tokens`, and prompt tokens still to be computed.

    Attributes:
        block_tokens: tokens of one prefix block.
        queue_tokens: prompt tokens that take as long as one outstanding request keeps the next one waiting.
    """

    def __init__(
        self, num_replicas: int, *, block_tokens: int = 16, queue_tokens: int = 256, capacity_blocks: int = 1 << 16
    ) -> None:
        super().__init__(num_replicas, capacity_blocks=capacity_blocks)
        self.block_tokens, self.queue_tokens = block_tokens, queue_tokens

    def choose(self, request: Request) -> int:
        """Return the replica with the least cost."""
        hashes, seen = request.block_hashes, self.seen

        def cost(replica: int) -> tuple[int, int, int]:
            missing = max(0, request.prompt_tokens - self.matched(replica, hashes) * self.block_tokens)
            return self.queue_tokens * seen[replica] + missing, seen[replica], replica

        chosen = min(self.candidates, key=cost)
        self.remember(chosen, hashes)
        return chosen


Router = RoundRobin
"""Every router has `route`, `finished`, `allow`, `delay`, `lost` and `outstanding`."""

ROUTERS: Mapping[str, Callable[[int, np.random.Generator, int], Router]] = {
    "round_robin": lambda num_replicas, rng, block_tokens: RoundRobin(num_replicas),
    "least_outstanding": lambda num_replicas, rng, block_tokens: LeastOutstanding(num_replicas),
    "random": lambda num_replicas, rng, block_tokens: Random(num_replicas, rng),
    "power_of_two": lambda num_replicas, rng, block_tokens: PowerOfTwo(num_replicas, rng),
    "prefix_affinity": lambda num_replicas, rng, block_tokens: PrefixAffinity(num_replicas),
    "kv_aware": lambda num_replicas, rng, block_tokens: KVAware(num_replicas, block_tokens=block_tokens),
}


def make_router(policy: str, num_replicas: int, rng: np.random.Generator, *, block_tokens: int = 16) -> Router:
    """Return a fresh router; `block_tokens` is the size of the blocks whose hashes requests carry.

    Raises:
        ValueError: unknown policy, or fewer than one replica.
    """
    if policy not in ROUTERS:
        raise ValueError(f"policy={policy!r} is none of {', '.join(ROUTERS)}")
    if num_replicas < 1:
        raise ValueError(f"num_replicas={num_replicas} < 1")
    return ROUTERS[policy](num_replicas, rng, block_tokens)


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
    """Route a list of requests; return the replica of each.

    Request i has the prefix blocks `arrivals[i]` of 16 tokens and one token more, and is done when `finish_after[i]` further
    requests have arrived (before the next one is routed). The router sees what was known `stale` requests ago. An outage
    (replica, first, last) keeps a replica from requests first to last - 1, and its cache is lost at the first.

    Raises:
        ValueError: unknown policy, fewer than one replica, no replica up, or lists of different lengths.

    >>> route(policy="round_robin", num_replicas=2, arrivals=[[], [], []], finish_after=[9, 9, 9], seed=0)
    [0, 1, 0]
    >>> route(policy="least_outstanding", num_replicas=2, arrivals=[[], [], []], finish_after=[9, 1, 9], seed=0)
    [0, 1, 1]
    """
    if len(arrivals) != len(finish_after):
        raise ValueError(f"len(arrivals)={len(arrivals)} != len(finish_after)={len(finish_after)}")
    router = make_router(policy, num_replicas, np.random.default_rng(seed))
    router.delay(stale)
    chosen: list[int] = []
    for now, hashes in enumerate(arrivals):
        router.now = now
        for replica in {down for down, _, _ in outages}:
            up = all(not (replica == down and first <= now < last) for down, first, last in outages)
            if router.up[replica] and not up:
                router.lost(replica)
            router.allow(replica, up)
        for earlier, replica in enumerate(chosen):
            if earlier + max(1, finish_after[earlier]) == now:
                router.finished(replica)
        chosen.append(router.route(Request(now, 16 * len(hashes) + 1, 1, tuple(hashes))))
    return chosen


def route_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a policy and up to 40 requests, some of which share prefixes."""
    num_requests = int(rng.integers(0, 41))
    num_replicas = int(rng.integers(1, 6))
    outages = []
    if num_replicas > 1 and rng.random() < 0.5:
        first = int(rng.integers(0, 30))
        outages.append((int(rng.integers(num_replicas)), first, first + int(rng.integers(0, 12))))
    return {
        "policy": str(rng.choice(list(ROUTERS))),
        "num_replicas": num_replicas,
        "stale": int(rng.integers(0, 6)) if rng.random() < 0.5 else 0,
        "outages": outages,
        "arrivals": [[int(rng.integers(3)) * 100 + depth for depth in range(rng.integers(0, 4))] for _ in range(num_requests)],
        "finish_after": rng.integers(1, 12, num_requests).tolist(),
        "seed": int(rng.integers(2**31)),
    }


ROUTER = Procedure(reference=route, examples=route_examples, paper="Mitzenmacher 2001, doi:10.1109/71.963420")
