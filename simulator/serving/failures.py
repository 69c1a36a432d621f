"""Faults of devices, nodes and network ports, drawn before a run as a list of outages. Units: seconds; integer nanoseconds.

Each part fails after an exponential time of mean MTBF and is repaired after an exponential time of mean MTTR, one after the
other, so that over a long time it is up MTBF / (MTBF + MTTR) of it. A replica needs all its parts: its devices, its nodes,
its ports. It is out while any of them is, and out once where outages overlap or touch.

What an outage (replica, down_ns, up_ns) does, at the instant `down_ns` before anything else of that instant (of several,
by replica number; a replica comes up before another goes down at the same instant):

- The running step is lost: it computes nothing and emits nothing, even where it would end at this very instant. The time
  it ran counts as busy.
- Every request on the replica loses its cache. In the order running, waiting, not yet taken in, each is given back to the
  gateway: its router counts it as finished there, and it is sent again after a pause of `backoff_s * factor**(n - 1)` at its
  n-th retry, with the tokens it has emitted kept (its prompt is extended by them, as engines migrate requests). A
  request that failed more than `limit` times fails for good. What arrives again at an instant comes after the first arrivals
  of that instant, by request id.
- The prefix cache is lost, and routers that remember prefixes forget this replica's.
- The replica is not chosen until `up_ns`, when it starts empty. While none can be chosen, requests wait at the gateway and
  are routed in order of arrival as soon as one comes up.

Time to first token counts from the first sending, whatever happened since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llmlab.reference.errors import InputError

NANOSECONDS = 1_000_000_000
PARTS = ("gpu", "node", "network")


class Outage(NamedTuple):
    """A replica serves nothing in [down_ns, up_ns)."""

    replica: int
    down_ns: int
    up_ns: int


@dataclass(frozen=True)
class Fault:
    """How often one part fails, and how long its repair takes, on average.

    Attributes:
        mtbf_s: time from a repair to the next failure.
        mttr_s: time from a failure to its repair.
    """

    mtbf_s: float
    mttr_s: float

    def __post_init__(self) -> None:
        for field in ("mtbf_s", "mttr_s"):
            if not 0 < getattr(self, field) < float("inf"):
                raise InputError("failures", field, getattr(self, field), "must be positive")

    @property
    def availability(self) -> float:
        """Part of the time it is up: MTBF / (MTBF + MTTR)."""
        return self.mtbf_s / (self.mtbf_s + self.mttr_s)


@dataclass(frozen=True)
class Failures:
    """Faults by kind of part; None never fails.

    Attributes:
        gpu: of one device.
        node: of one host with all its devices.
        network: of one replica's port to the gateway and to the others.
        horizon_s: time for which outages are drawn; nothing fails after it. None: twice the span of the arrivals, at least 1 h.
    """

    gpu: Fault | None = None
    node: Fault | None = None
    network: Fault | None = None
    horizon_s: float | None = None


@dataclass(frozen=True)
class Retries:
    """What the gateway does with requests whose replica failed.

    Attributes:
        limit: how often one request is sent again.
        backoff_s: pause before the first retry.
        factor: every further pause is this many times as long.
    """

    limit: int = 3
    backoff_s: float = 0.1
    factor: float = 2.0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise InputError("retries", "limit", self.limit, "must not be negative")
        if not 0 <= self.backoff_s < float("inf"):
            raise InputError("retries", "backoff_s", self.backoff_s, "must not be negative")
        if not 1 <= self.factor < float("inf"):
            raise InputError("retries", "factor", self.factor, "must be at least 1")

    def pause_ns(self, attempt: int) -> int:
        """Nanoseconds before retry number `attempt`, counted from 1; a year at most."""
        return round(min(self.backoff_s * self.factor ** min(attempt - 1, 60), 3.2e7) * NANOSECONDS)


def failed(index: int, times: int) -> str:
    """Say that a request was sent again as often as it may be."""
    return f"request {index}: its replica failed {times} times"


def spells(fault: Fault, horizon_s: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Outages (down_ns, up_ns) of one part that begin within the horizon."""
    found: list[tuple[int, int]] = []
    now_s = 0.0
    while True:
        now_s += rng.exponential(fault.mtbf_s)
        if now_s >= horizon_s:
            return found
        repair_s = rng.exponential(fault.mttr_s)
        down_ns = round(now_s * NANOSECONDS)
        found.append((down_ns, max(down_ns + 1, round((now_s + repair_s) * NANOSECONDS))))
        now_s += repair_s


def merged(outages: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join outages that overlap or touch.

    >>> merged([(5, 9), (1, 3), (3, 4), (6, 7)])
    [(1, 4), (5, 9)]
    """
    joined: list[tuple[int, int]] = []
    for down, up in sorted(outages):
        if joined and down <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(up, joined[-1][1]))
        else:
            joined.append((down, up))
    return joined


def draw_outages(
    failures: Failures,
    *,
    devices: Sequence[int],
    devices_per_node: Sequence[int],
    horizon_s: float,
    seed: int,
) -> tuple[list[Outage], dict[str, int]]:
    """Draw the outages of every replica, in order of (down_ns, replica), and count the faults by kind.

    Replicas of `devices[i]` devices are placed one after another on nodes of `devices_per_node[i]`: small ones share a node
    (one never straddles two), large ones fill whole nodes of their own. Every part has a random stream of its own.
    """
    count = len(devices)
    per_replica: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    faults = dict.fromkeys(PARTS, 0)
    nodes = place(devices, devices_per_node)
    streams = np.random.SeedSequence([seed, 0xFA17]).spawn(3)
    if failures.gpu is not None:
        for replica, stream in enumerate(streams[0].spawn(count)):
            for device in stream.spawn(devices[replica]):
                found = spells(failures.gpu, horizon_s, np.random.default_rng(device))
                faults["gpu"] += len(found)
                per_replica[replica] += found
    if failures.node is not None:
        used = sorted({node for own in nodes for node in own})
        for node, stream in zip(used, streams[1].spawn(len(used))):
            found = spells(failures.node, horizon_s, np.random.default_rng(stream))
            faults["node"] += len(found)
            for replica, own in enumerate(nodes):
                if node in own:
                    per_replica[replica] += found
    if failures.network is not None:
        for replica, stream in enumerate(streams[2].spawn(count)):
            found = spells(failures.network, horizon_s, np.random.default_rng(stream))
            faults["network"] += len(found)
            per_replica[replica] += found
    outages = [Outage(replica, down, up) for replica, own in enumerate(per_replica) for down, up in merged(own)]
    return sorted(outages, key=lambda outage: (outage.down_ns, outage.replica)), faults


def place(devices: Sequence[int], devices_per_node: Sequence[int]) -> list[list[int]]:
    """Nodes of each replica, filled one after another.

    >>> place([4, 4, 4, 16], [8, 8, 8, 8])
    [[0], [0], [1], [2, 3]]
    """
    placed: list[list[int]] = []
    node, free, size = -1, 0, 0
    for wanted, per_node in zip(devices, devices_per_node):
        if wanted > per_node:
            whole = -(-wanted // per_node)
            placed.append(list(range(node + 1, node + 1 + whole)))
            node, free = node + whole, 0
            continue
        if wanted > free or per_node != size:
            node, free, size = node + 1, per_node, per_node
        free -= wanted
        placed.append([node])
    return placed
