"""Collectives as programs of flows over a topology: phases one after another, in each the messages that go at the same time.

The messages are those of `reference/parallel/collectives.py`, algorithm by algorithm. Equal rounds of a ring are one
phase, since its chunks follow each other without waiting: a phase of k rounds takes

    k (latency of its longest route + protocol's time per round) + bytes / share of the links       (alpha-beta; Hockney 1994)

A ring over nodes is as many rings as a node has ranks in it, each crossing at another port, every second node walked backwards,
as NCCL lays them. Where no algorithm is named, the one with the least predicted time on idle links is taken, protocol by
protocol, as NCCL's tuning does: the predicted time charges each phase for its most loaded link.
Units: bytes, seconds. `size` is the whole array, as in the reference's `volume`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import simpy

from llmlab.reference.errors import InputError
from llmlab.reference.parallel.collectives import double_tree, power_of_two_below
from llmlab.simulator.training.contention import NANOSECONDS, Fabric, Flow, Sent
from llmlab.simulator.training.topology import Topology, check_ranks

MOST_FLOWS = 200_000


@dataclass(frozen=True)
class Phase:
    """Messages that go at the same time, `rounds` times over in pieces."""

    flows: tuple[Flow, ...]
    rounds: int = 1


@dataclass(frozen=True)
class Program:
    """A collective over some ranks by one algorithm."""

    collective: str
    algorithm: str
    ranks: tuple[int, ...]
    phases: tuple[Phase, ...]

    @property
    def sent_bytes(self) -> float:
        """Bytes that all ranks send."""
        return sum(flow.size for phase in self.phases for flow in phase.flows)


@dataclass(frozen=True)
class Protocol:
    """How a message is sent: `start_s` once per collective, `round_s` per round, `share` of a link's bandwidth."""

    name: str
    start_s: float = 0.0
    round_s: float = 0.0
    share: float = 1.0


IDEAL = Protocol("ideal")
PROTOCOLS: Mapping[str, tuple[Protocol, ...]] = {
    "ideal": (IDEAL,),
    "nccl-ampere": (Protocol("low latency", 1.06e-5, 0.0, 0.325), Protocol("simple", 3.36e-5)),
    "nccl-hopper": (Protocol("low latency", 5.7e-6, 0.0, 0.47), Protocol("simple", 2.0e-5)),
}
"""What a library sends with. NCCL's flags with every word (low latency) against whole slices behind a fence (simple), fitted on
every second size of measured collectives within a node (`harness/validation/collectives.py`); rounds cost a link's latency."""


def rings(topology: Topology, ranks: Sequence[int]) -> list[list[int]]:
    """Orders of the ranks that a ring collective shares its bytes over."""
    nodes: dict[int, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank // topology.node_devices, []).append(rank)
    width = min(map(len, nodes.values()))
    if len(nodes) == 1 or width == 1 or max(map(len, nodes.values())) > width:
        direct = len(nodes) == 1 and len(ranks) > 2 and topology.graph.has_edge(f"gpu{ranks[0]}", f"gpu{ranks[1]}")
        strides = [step for step in range(1, len(ranks)) if math.gcd(step, len(ranks)) == 1] if direct else [1]
        return [[ranks[i * step % len(ranks)] for i in range(len(ranks))] for step in strides]
    found = []
    for turn in range(width):
        order: list[int] = []
        for place, own in enumerate(nodes.values()):
            walk = own[turn:] + own[:turn]
            order += walk[::-1] if place % 2 else walk
        found.append(order)
    return found


def _ring(topology: Topology, ranks: Sequence[int], size: float, parts: int) -> tuple[Phase, ...]:
    n = len(ranks)
    orders = rings(topology, ranks)
    each = size * (n - 1) / n / len(orders)
    flows = tuple(Flow(order[i], order[(i + 1) % n], each) for order in orders for i in range(n))
    return (Phase(flows, n - 1),) * parts


def _halving(ranks: Sequence[int], size: float) -> list[Phase]:
    n = len(ranks)
    phases, distance = [], n // 2
    while distance:
        phases.append(Phase(tuple(Flow(ranks[i], ranks[i ^ distance], size * distance / n) for i in range(n))))
        distance //= 2
    return phases


def _halving_doubling(topology: Topology, ranks: Sequence[int], size: float, parts: int) -> tuple[Phase, ...]:
    """Reduce-scatter and back; ranks beyond a power of two hand their array to another first and get the sum at the end."""
    n = len(ranks)
    power = power_of_two_below(n)
    if parts == 1 and power < n:
        raise InputError("collective", "ranks", n, "halving and doubling needs a power of two")
    extra = n - power  # as in the reference: of the first 2 x extra ranks the odd ones sit out
    kept = [*ranks[0 : 2 * extra : 2], *ranks[2 * extra :]]
    down = _halving(kept, size)
    inner = down + down[::-1] if parts == 2 else down
    if extra:
        pairs = [(ranks[2 * i + 1], ranks[2 * i]) for i in range(extra)]
        before = Phase(tuple(Flow(out, kept_by, size) for out, kept_by in pairs))
        after = Phase(tuple(Flow(kept_by, out, size) for out, kept_by in pairs))
        return (before, *inner, after)
    return tuple(inner)


def _binomial(ranks: Sequence[int], size: float) -> list[Phase]:
    n, phases, distance = len(ranks), [], 1
    while distance < n:  # who has it doubles each round
        reached = range(min(distance, n - distance))
        phases.append(Phase(tuple(Flow(ranks[i], ranks[i + distance], size) for i in reached)))
        distance *= 2
    return phases


def _tree(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    down = _binomial(ranks, size)
    up = [Phase(tuple(Flow(b, a, kept) for a, b, kept in phase.flows)) for phase in down[::-1]]
    return (*up, *down)


def _depth(tree: Sequence[int]) -> int:
    def above(rank: int) -> int:
        return 0 if tree[rank] < 0 else 1 + above(tree[rank])

    return max(map(above, range(len(tree))))


def _double_tree(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    """Both trees at once, up and down at once: segments follow each other."""
    trees = double_tree(len(ranks))
    flows = [
        Flow(ranks[a], ranks[b], size / 2)
        for tree in trees
        for child, above in enumerate(tree)
        if above >= 0
        for a, b in ((child, above), (above, child))
    ]
    return (Phase(tuple(flows), 2 * max(map(_depth, trees))),)


def _levels(topology: Topology, ranks: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Ranks of each node, and rails: the ranks at the same place of every node.

    Raises:
        InputError: one node, or nodes with different numbers of ranks.
    """
    nodes: dict[int, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank // topology.node_devices, []).append(rank)
    inside = list(nodes.values())
    if len(inside) < 2 or len({len(own) for own in inside}) > 1 or len(inside[0]) < 2:
        raise InputError("collective", "ranks", len(ranks), "two levels need several nodes with equally many ranks each")
    return inside, [list(rail) for rail in zip(*inside)]


def _side_by_side(programs: Sequence[Sequence[Phase]]) -> list[Phase]:
    """Phases of groups that work at the same time and have equally many."""
    return [
        Phase(tuple(flow for phase in same for flow in phase.flows), max(phase.rounds for phase in same))
        for same in zip(*programs)
    ]


def _two_levels(between: Callable[..., tuple[Phase, ...]]) -> Callable[..., tuple[Phase, ...]]:
    def build(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
        inside, rails = _levels(topology, ranks)
        scatter = _side_by_side([_ring(topology, own, size, 1) for own in inside])
        across = _side_by_side([between(topology, rail, size / len(rails)) for rail in rails])
        return (*scatter, *across, *scatter)

    return build


def _chain(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    """A broadcast in pieces along a line (NCCL's ring broadcast)."""
    return (Phase(tuple(Flow(a, b, size) for a, b in pairwise(ranks)), max(1, len(ranks) - 1)),)


def _pairwise(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    n = len(ranks)
    return tuple(Phase(tuple(Flow(ranks[i], ranks[(i + k) % n], size / n) for i in range(n))) for k in range(1, n))


def _direct(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    return (Phase(tuple(flow for phase in _pairwise(topology, ranks, size) for flow in phase.flows)),)


def _bruck(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    n, phases, hop = len(ranks), [], 1
    while hop < n:
        blocks = sum(1 for distance in range(n) if distance & hop)
        phases.append(Phase(tuple(Flow(ranks[i], ranks[(i + hop) % n], size / n * blocks) for i in range(n))))
        hop *= 2
    return tuple(phases)


def _two_level_all_to_all(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    """To the rank of the own node that shares the rail with the goal, then along the rail."""
    inside, rails = _levels(topology, ranks)
    exchange = [_side_by_side([_direct(topology, group, size) for group in level]) for level in (inside, rails)]
    return (*exchange[0], *exchange[1])


def _point_to_point(topology: Topology, ranks: Sequence[int], size: float) -> tuple[Phase, ...]:
    return (Phase((Flow(ranks[0], ranks[1], size),)),)


Builder = Callable[[Topology, Sequence[int], float], tuple[Phase, ...]]

ALGORITHMS: Mapping[str, Mapping[str, Builder]] = {
    "all_reduce": {
        "ring": lambda t, r, s: _ring(t, r, s, 2),
        "tree": _tree,
        "double_binary_tree": _double_tree,
        "halving_doubling": lambda t, r, s: _halving_doubling(t, r, s, 2),
        "hierarchical": _two_levels(lambda t, r, s: _ring(t, r, s, 2)),
        "hierarchical_tree": _two_levels(_double_tree),
    },
    "reduce_scatter": {
        "ring": lambda t, r, s: _ring(t, r, s, 1),
        "halving_doubling": lambda t, r, s: _halving_doubling(t, r, s, 1),
    },
    "all_gather": {
        "ring": lambda t, r, s: _ring(t, r, s, 1),
        "halving_doubling": lambda t, r, s: _halving_doubling(t, r, s, 1)[::-1],
    },
    "broadcast": {"ring": _chain, "tree": lambda t, r, s: tuple(_binomial(r, s))},
    "all_to_all": {"direct": _direct, "pairwise": _pairwise, "bruck": _bruck, "hierarchical": _two_level_all_to_all},
    "send": {"direct": _point_to_point},
}


LIBRARY: Mapping[str, tuple[str, ...]] = {
    "nccl": ("ring", "double_binary_tree", "hierarchical", "hierarchical_tree", "direct"),
}
"""Algorithms a library has; its own trees are chains within a node and two trees between, which two levels stand for, so within
one node it has no tree."""


def program(topology: Topology, collective: str, algorithm: str, ranks: Sequence[int], size: float) -> Program:
    """A collective of `size` bytes over these devices.

    Raises:
        InputError: an unknown name, ranks the algorithm or the topology refuses, or bytes that are negative or not finite.

    >>> from llmlab.simulator.training.topology import topology_of
    >>> one = topology_of({"nodes": 1, "node": {"devices": 4, "bytes_per_s": 1e9, "latency_s": 0.0}})
    >>> program(one, "all_reduce", "ring", range(4), 4e9).sent_bytes
    24000000000.0
    """
    if collective not in ALGORITHMS:
        raise InputError("collective", "collective", collective, f"unknown; known: {', '.join(ALGORITHMS)}")
    if algorithm not in ALGORITHMS[collective]:
        known = ", ".join(ALGORITHMS[collective])
        raise InputError("collective", "algorithm", algorithm, f"no {collective} by it; known: {known}")
    if not (math.isfinite(size) and size >= 0):
        raise InputError("collective", "bytes", size, "must be finite and not negative")
    check_ranks(topology, ranks)
    if len(ranks) < (2 if collective == "send" else 1):
        raise InputError("collective", "ranks", len(ranks), f"too few for {collective}")
    if collective == "all_to_all" and len(ranks) ** 2 > MOST_FLOWS:
        raise InputError("collective", "ranks", len(ranks), f"more than {MOST_FLOWS} messages")
    phases = ALGORITHMS[collective][algorithm](topology, tuple(ranks), float(size)) if len(ranks) > 1 else ()
    return Program(collective, algorithm, tuple(ranks), tuple(phases))


def phase_latency_s(topology: Topology, phase: Phase, protocol: Protocol) -> float:
    """Seconds of a phase beside its bytes."""
    if not phase.flows:
        return 0.0
    longest = max(topology.route_latency_s(flow.source, flow.target) for flow in phase.flows)
    return phase.rounds * (longest + protocol.round_s)


def predicted_s(topology: Topology, made: Program, protocol: Protocol = IDEAL) -> float:
    """Seconds on idle links, each phase charged for its most loaded link."""
    seconds = protocol.start_s if made.phases else 0.0
    seen: dict[Phase, float] = {}  # both halves of a ring are the same phase
    for phase in made.phases:
        if phase not in seen:
            load = np.zeros(len(topology.edges))
            for label, flow in enumerate(phase.flows):
                load[list(topology.route(flow.source, flow.target, label))] += flow.size / protocol.share
            busiest = float((load / topology.bytes_per_s).max())
            seen[phase] = phase_latency_s(topology, phase, protocol) + busiest
        seconds += seen[phase]
    return seconds


def candidates(
    topology: Topology, collective: str, ranks: Sequence[int], size: float, protocols: str = "ideal"
) -> list[tuple[float, Program, Protocol]]:
    """Every algorithm (of the protocols' library) and protocol that takes these ranks, by predicted time, then in order.

    Raises:
        InputError: none does.
    """
    found: list[tuple[float, Program, Protocol]] = []
    refused: InputError | None = None
    allowed = LIBRARY.get(protocols.partition("-")[0])
    one_node = len({rank // topology.node_devices for rank in ranks}) == 1
    for algorithm in ALGORITHMS.get(collective, {"": None}):
        if algorithm and allowed is not None and (algorithm not in allowed or (one_node and "tree" in algorithm)):
            continue
        try:
            made = program(topology, collective, algorithm, ranks, size)
        except InputError as error:
            if error.field != "ranks":
                raise
            refused = refused or error
            continue
        found += [(predicted_s(topology, made, protocol), made, protocol) for protocol in protocols_of(protocols)]
    if not found:
        raise refused or InputError("collective", "collective", collective, "cannot be run")
    return sorted(found, key=lambda entry: entry[0])


@dataclass(frozen=True)
class NetworkRun:
    """What several programs at once came to.

    Attributes:
        seconds: per program, from its start at 0.
        sent: every flow.
        rates: (ns, bytes per second on each link from then on).
    """

    topology: Topology
    programs: tuple[Program, ...]
    seconds: tuple[float, ...]
    sent: tuple[Sent, ...]
    link_bytes: np.ndarray
    rates: tuple[tuple[int, np.ndarray], ...] = ()

    @property
    def makespan_s(self) -> float:
        """Until the last is through."""
        return max(self.seconds, default=0.0)

    def busiest_links(self, most: int = 8) -> list[dict[str, Any]]:
        """Links by the part of the time they were busy."""
        part = self.link_bytes / self.topology.bytes_per_s / (self.makespan_s or 1.0)
        order = sorted(np.flatnonzero(self.link_bytes), key=lambda link: (-round(part[link], 9), link))[:most]
        return [
            {"link": ">".join(self.topology.edges[i]), "bytes": float(self.link_bytes[i]), "busy": float(part[i])}
            for i in order
        ]

    def trace_events(self) -> list[dict[str, Any]]:
        """Chrome trace events: a track per sending device, flows that overlap beside each other."""
        events: list[dict[str, Any]] = []
        devices = sorted({flow.source for flow in self.sent})
        for device in devices:
            events.append({"ph": "M", "name": "process_name", "pid": device, "tid": 0, "args": {"name": f"gpu {device}"}})
        free: dict[int, list[int]] = {device: [] for device in devices}
        for flow in sorted(self.sent, key=lambda f: (f.start_ns, f.program, f.phase, f.source, f.target)):
            lanes = free[flow.source]
            lane = next((i for i, until in enumerate(lanes) if until <= flow.start_ns), len(lanes))
            lanes[lane : lane + 1] = [flow.end_ns]
            made = self.programs[flow.program]
            events.append(
                {
                    "ph": "X",
                    "name": f"{made.collective} to gpu {flow.target}",
                    "cat": made.algorithm,
                    "pid": flow.source,
                    "tid": lane,
                    "ts": flow.start_ns / 1e3,
                    "dur": (flow.end_ns - flow.start_ns) / 1e3,
                    "args": {"group": flow.program, "phase": flow.phase, "bytes": flow.size},
                }
            )
        return events


def run(
    topology: Topology,
    programs: Sequence[Program],
    protocols: Sequence[Protocol] | Protocol = IDEAL,
    *,
    record: bool = False,
) -> NetworkRun:
    """Run programs at the same time on the topology's links, all from time 0."""
    env = simpy.Environment()
    fabric = Fabric(env, topology, record=record)
    each = [protocols] * len(programs) if isinstance(protocols, Protocol) else list(protocols)
    ends = [0] * len(programs)

    def collective(number: int) -> Generator[simpy.Event, Any, None]:
        made, protocol = programs[number], each[number]
        if made.phases:
            yield env.timeout(round(protocol.start_s * NANOSECONDS))
        for place, phase in enumerate(made.phases):
            yield env.timeout(round(phase_latency_s(topology, phase, protocol) * NANOSECONDS))
            flows = phase.flows
            if protocol.share < 1.0:
                flows = tuple(Flow(a, b, size / protocol.share) for a, b, size in flows)
            yield fabric.send(flows, number, place)
        ends[number] = int(env.now)

    for number in range(len(programs)):
        env.process(collective(number))
    env.run()
    seconds = tuple(end / NANOSECONDS for end in ends)
    return NetworkRun(topology, tuple(programs), seconds, tuple(fabric.sent), fabric.link_bytes, tuple(fabric.rates))


def groups_of(devices: int, ranks: int, stride: int) -> list[list[int]]:
    """Groups of ranks `stride` apart that together cover the devices.

    >>> groups_of(8, 2, 4)
    [[0, 4], [1, 5], [2, 6], [3, 7]]
    """
    return [
        [first + place + i * stride for i in range(ranks)]
        for first in range(0, devices - ranks * stride + 1, ranks * stride)
        for place in range(stride)
    ]


@lru_cache(maxsize=4096)
def concurrent_s(
    topology: Topology,
    collective: str,
    size: float,
    devices: int,
    ranks: int,
    stride: int,
    protocols: str = "ideal",
) -> float:
    """Seconds until the last of a plan's groups is through when all of them run the same collective at once.

    The algorithm is chosen for one group on idle links: a library does not know what others send.
    """
    groups = groups_of(devices, ranks, stride)
    if collective == "send":
        hops = [[first, first + stride] for first in range(devices - stride)]
        programs = [program(topology, "send", "direct", pair, size) for pair in hops]
        return run(topology, programs, protocols_of(protocols)[-1]).makespan_s
    _, chosen, protocol = candidates(topology, collective, groups[0], size, protocols)[0]
    programs = [program(topology, collective, chosen.algorithm, group, size) for group in groups]
    return run(topology, programs, protocol).makespan_s


def protocols_of(name: str) -> tuple[Protocol, ...]:
    """Protocols by name.

    Raises:
        InputError: unknown.
    """
    if name not in PROTOCOLS:
        raise InputError("collective", "protocols", name, f"unknown; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def parse_ranks(topology: Topology, words: str) -> list[int]:
    """Devices from a count (the first so many), a range `0-15`, a list `0,8,16`, or `all`.

    Raises:
        InputError: none of these.
    """
    if words == "all":
        return list(range(topology.devices))
    try:
        if words.isdigit():
            found = list(range(int(words)))
        else:
            found = []
            for part in words.split(","):
                first, _, last = part.partition("-")
                found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise InputError("collective", "ranks", words, "give a count, a range 0-15, a list 0,8,16, or all") from None
    if not found:
        raise InputError("collective", "ranks", words, "names no rank")
    check_ranks(topology, found)
    return found


def run_collective(
    topology: Topology,
    collective: str,
    size: float,
    ranks: Sequence[int],
    *,
    groups: int = 1,
    layout: str = "consecutive",
    algorithm: str = "auto",
    protocols: str = "ideal",
    record: bool = False,
) -> tuple[NetworkRun, dict[str, Any]]:
    """Run a collective over the ranks, or over `groups` of them at once, and say what it comes to beside its closed form.

    Args:
        topology: links.
        collective: one of `ALGORITHMS`.
        size: bytes of the whole array of one group.
        ranks: devices.
        groups: equal parts of the ranks that run the same at the same time.
        layout: `consecutive` parts, or `strided`: every so many-th rank.
        algorithm: its name, or `auto` for the quickest by prediction.
        protocols: one of `PROTOCOLS`.
        record: keep the links' rates over time.

    Raises:
        InputError: an unknown name, or sizes that do not fit.
    """
    if layout not in ("consecutive", "strided"):
        raise InputError("collective", "layout", layout, "is neither consecutive nor strided")
    if groups < 1 or len(ranks) % groups:
        raise InputError("collective", "groups", groups, f"must divide {len(ranks)} ranks")
    each = len(ranks) // groups
    parts = [list(ranks[i::groups]) if layout == "strided" else list(ranks[i * each : (i + 1) * each]) for i in range(groups)]
    if algorithm == "auto":
        found = candidates(topology, collective, parts[0], size, protocols)
    else:
        made = program(topology, collective, algorithm, parts[0], size)
        times = [(predicted_s(topology, made, one), made, one) for one in protocols_of(protocols)]
        found = sorted(times, key=lambda entry: entry[0])
    predicted, chosen, protocol = found[0]
    programs = [program(topology, collective, chosen.algorithm, part, size) for part in parts]
    alone = run(topology, programs[:1], protocol).makespan_s
    done = run(topology, programs, protocol, record=record)
    n, seconds = each, done.makespan_s
    moved = {"all_reduce": 2.0 * (n - 1) / n, "broadcast": 1.0, "send": 1.0}.get(collective, (n - 1) / n)
    best: dict[str, dict[str, Any]] = {}
    for value, made, one in found:
        best.setdefault(made.algorithm, {"algorithm": made.algorithm, "protocol": one.name, "predicted_s": value})
    return done, {
        "topology": topology.name,
        "devices": topology.devices,
        "collective": collective,
        "algorithm": chosen.algorithm,
        "protocol": protocol.name,
        "bytes": float(size),
        "ranks": each,
        "groups": groups,
        "seconds": seconds,
        "alone_s": alone,
        "predicted_s": predicted,
        "slowdown": seconds / alone if alone else 1.0,
        "bus_bytes_per_s": moved * size / seconds if seconds else 0.0,
        "group_s": list(done.seconds),
        "algorithms": list(best.values()),
        "busiest_links": done.busiest_links(),
    }


def tables(figures: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The figures of `run_collective` as titled tables."""
    groups = f"{figures['groups']} groups of " if figures["groups"] > 1 else ""
    title = f"{figures['collective']} of {figures['bytes']:.4g} bytes over {groups}{figures['ranks']} ranks"
    keys = ("algorithm", "protocol", "seconds", "alone_s", "predicted_s", "slowdown", "bus_bytes_per_s")
    return [
        (title, [{key: figures[key] for key in keys}]),
        ("Algorithms on idle links", figures["algorithms"]),
        ("Busiest links", figures["busiest_links"]),
    ]
