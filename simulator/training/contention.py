"""Flows that share links, max-min fair, as a SimPy process. Units: bytes, seconds; the clock is integer nanoseconds.

Every flow gets the largest rate that takes nothing from a flow with less: all rates grow together until a link is full, whose
flows stop there, the others grow on (progressive filling; Bertsekas and Gallager, Data Networks, section 6.5.2). Rates are
set anew whenever a flow begins or ends, so a run is exact up to the rounding of ends to the next nanosecond.

Order of ties: flows that begin at the same nanosecond are all there before rates are set; flows that end at the same nanosecond
end in the order they were sent, and so do those who wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import simpy

from llmlab.simulator.training.topology import Topology

NANOSECONDS = 1e9


class Flow(NamedTuple):
    """Bytes from one device to another."""

    source: int
    target: int
    size: float


class Sent(NamedTuple):
    """A flow as it happened; `program` is who sent it, `phase` its step."""

    program: int
    phase: int
    source: int
    target: int
    size: float
    start_ns: int
    end_ns: int


def max_min_rates(routes: Sequence[Sequence[int]], bytes_per_s: np.ndarray) -> np.ndarray:
    """Rate of each flow over its links; a flow over no link is infinitely fast.

    >>> max_min_rates([[0], [0, 1], [1]], np.array([6.0, 10.0])).tolist()
    [3.0, 3.0, 7.0]
    """
    flow_of = np.repeat(np.arange(len(routes)), [len(route) for route in routes])
    link_of = np.array([link for route in routes for link in route], dtype=np.int64)
    rates = np.full(len(routes), np.inf)
    left = bytes_per_s.astype(np.float64)
    growing = np.zeros(len(routes), dtype=bool)
    growing[flow_of] = True
    while growing.any():
        entries = growing[flow_of]
        count = np.bincount(link_of[entries], minlength=len(left))
        share = np.where(count > 0, left / np.maximum(count, 1), np.inf)
        lowest = share.min()
        full = share <= lowest * (1 + 1e-12)
        stopped = np.zeros_like(growing)
        stopped[flow_of[entries & full[link_of]]] = True
        rates[stopped] = lowest
        left = np.maximum(left - lowest * np.bincount(link_of[stopped[flow_of]], minlength=len(left)), 0.0)
        growing &= ~stopped
    return rates


class Fabric:
    """Links of a topology with the flows on them.

    Attributes:
        sent: flows that have ended, in the order they did.
        link_bytes: what crossed each link.
        rates: (ns, bytes per second on every link from then on), where `record` asks for them.
    """

    def __init__(self, env: simpy.Environment, topology: Topology, *, record: bool = False) -> None:
        self.env, self.topology = env, topology
        self.sent: list[Sent] = []
        self.link_bytes = np.zeros(len(topology.edges))
        self.rates: list[tuple[int, np.ndarray]] = []
        self._record = record
        self._going: list[tuple[Sent, tuple[int, ...], simpy.Event, list[int]]] = []
        self._left, self._rate = np.zeros(0), np.zeros(0)
        self._since, self._turn, self._asked = 0, 0, False

    def send(self, flows: Sequence[Flow], program: int = 0, phase: int = 0) -> simpy.Event:
        """Begin these flows now; the event comes when the last of them has arrived."""
        done = self.env.event()
        self._settle()
        missing = [0]
        added = []
        for label, flow in enumerate(flows):
            route = self.topology.route(flow.source, flow.target, label)
            if not route or flow.size <= 0:
                continue
            np.add.at(self.link_bytes, list(route), flow.size)
            record = Sent(program, phase, flow.source, flow.target, flow.size, int(self.env.now), -1)
            self._going.append((record, route, done, missing))
            added.append(flow.size)
        missing[0] = len(added)
        if not added:
            return done.succeed()
        self._left = np.concatenate([self._left, added])
        self._rate = np.concatenate([self._rate, np.zeros(len(added))])
        if not self._asked:  # whoever begins at this nanosecond is counted before rates are set
            self._asked = True
            self.env.timeout(0).callbacks.append(self._share)
        return done

    def _settle(self) -> None:
        """Take off what has crossed since rates were set."""
        elapsed = (self.env.now - self._since) / NANOSECONDS
        if elapsed:
            self._left = self._left - self._rate * elapsed
            self._since = int(self.env.now)

    def _share(self, _: Any) -> None:
        self._asked = False
        self._settle()
        self._rate = max_min_rates([route for _, route, _, _ in self._going], self.topology.bytes_per_s)
        if self._record:
            load = np.zeros(len(self.link_bytes))
            for (_, route, _, _), rate in zip(self._going, self._rate):
                load[list(route)] += rate
            self.rates.append((int(self.env.now), load))
        if len(self._going):
            self._turn += 1
            turn = self._turn
            soonest = math.ceil(max(float((self._left / self._rate).min()) * NANOSECONDS - 1e-3, 0.0))
            self.env.timeout(soonest).callbacks.append(lambda _: self._end(turn))

    def _end(self, turn: int) -> None:
        if turn != self._turn:
            return  # rates have changed since
        self._settle()
        over = self._left <= self._rate * (1e-3 / NANOSECONDS)
        going = self._going
        for (record, _, done, missing), ended in zip(going, over):
            if ended:
                self.sent.append(record._replace(end_ns=int(self.env.now)))
                missing[0] -= 1
                if not missing[0]:
                    done.succeed()
        self._going = [entry for entry, ended in zip(going, over) if not ended]
        self._left, self._rate = self._left[~over], self._rate[~over]
        if not self._asked:
            self._asked = True
            self.env.timeout(0).callbacks.append(self._share)
