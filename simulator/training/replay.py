"""When everything in a pipeline schedule happens, given how long each action takes: a SimPy run, and a compiled longest path.

Durations are integer nanoseconds per kind of action and stage, hand-overs per boundary between stages; a rank does its actions
in the order of the schedule, each as early as its own previous action and what it needs from elsewhere allow. Links never
queue. Nothing is random, so the earliest start is the longest path that leads there: both loops give the same integers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from llmlab.reference.errors import InputError
from llmlab.reference.parallel._orders import bubble_time, make_schedule, peak_of, zb_auto
from llmlab.reference.parallel._schedule import KINDS, Action, Schedule
from llmlab.simulator.tracing import write_trace


@dataclass(frozen=True)
class Durations:
    """How long things take, in nanoseconds.

    Attributes:
        action_ns: row per kind (F, B, I, W), column per stage.
        hand_over_ns: what a stage hands on (row 0: an activation, row 1: a gradient) is there so much after it was made; what
            stays on its rank is there at once.
        pair_permille: where a forward runs beside a backward, the time of both in thousandths of their sum; None runs them
            one after the other.
    """

    action_ns: np.ndarray
    hand_over_ns: np.ndarray
    pair_permille: int | None = None


def even(
    schedule: Schedule,
    forward_ns: int,
    backward_input_ns: int,
    backward_weight_ns: int,
    hand_over_ns: int = 0,
    pair_permille: int | None = None,
) -> Durations:
    """Durations where every stage is alike; the times are those of 1 / num_ranks of the model, a stage takes its part of them.

    Raises:
        InputError: a time that is negative.
    """
    for name, value in (
        ("forward", forward_ns),
        ("backward input", backward_input_ns),
        ("backward weight", backward_weight_ns),
        ("hand-over", hand_over_ns),
        ("pair_permille", pair_permille or 0),
    ):
        if value < 0:
            raise InputError("pipeline", name, value, "must not be negative")
    chunks = schedule.chunks_per_rank
    forward, own_input, weight = (round(time / chunks) for time in (forward_ns, backward_input_ns, backward_weight_ns))
    one = np.array([forward, own_input + weight, own_input, weight], dtype=np.int64)
    across = np.full((2, schedule.num_stages), hand_over_ns, dtype=np.int64)
    return Durations(np.repeat(one[:, None], schedule.num_stages, axis=1), across, pair_permille)


@dataclass(frozen=True)
class Timeline:
    """When every unit of a schedule (an action, or a forward beside a backward) ran.

    Attributes:
        schedule: that was replayed.
        units: per rank, in order.
        start_ns: per rank, of each unit.
        end_ns: per rank, of each unit.
    """

    schedule: Schedule
    units: list[list[tuple[Action, ...]]]
    start_ns: list[np.ndarray]
    end_ns: list[np.ndarray]

    @cached_property
    def makespan_ns(self) -> int:
        """From the first start of all to the last end of all."""
        return max(int(end[-1]) for end in self.end_ns if len(end))

    @cached_property
    def busy_ns(self) -> list[int]:
        """Working time per rank."""
        return [int((end - start).sum()) for start, end in zip(self.start_ns, self.end_ns)]

    @cached_property
    def span_ns(self) -> list[int]:
        """From a rank's first start to its last end."""
        return [int(end[-1] - start[0]) for start, end in zip(self.start_ns, self.end_ns)]

    @property
    def idle_ns(self) -> list[int]:
        """Time per rank within the makespan in which it does nothing."""
        return [self.makespan_ns - busy for busy in self.busy_ns]

    @property
    def bubble_fraction(self) -> float:
        """Part of all ranks' time up to the last end of all that is idle."""
        return 1 - sum(self.busy_ns) / (self.makespan_ns * self.schedule.num_ranks) if self.makespan_ns else 0.0

    @property
    def steady_bubble_fraction(self) -> float:
        """The same of the longest span of a rank: the next step may begin on a rank that is through (arXiv:2401.10241)."""
        longest = max(self.span_ns)
        return 1 - sum(self.busy_ns) / (longest * self.schedule.num_ranks) if longest else 0.0

    def activations(self, rank: int, *, freed_by_input: float = 0.0) -> list[tuple[int, float]]:
        """Activations of a rank over time: (ns, held from then on), in units of what 1 / num_ranks of the model keeps.

        A forward takes its space at its start; a backward gives it back at its end.
        """
        gives = {"F": 1.0, "B": -1.0, "I": -freed_by_input, "W": freed_by_input - 1.0}
        changes = [
            (int(start if action.kind == "F" else end), gives[action.kind])
            for unit, start, end in zip(self.units[rank], self.start_ns[rank], self.end_ns[rank])
            for action in unit
        ]
        held, over = 0.0, []
        for when, change in sorted(changes):
            held += change
            over.append((when, held / self.schedule.chunks_per_rank))
        return over

    def actions(self) -> Iterator[tuple[int, Action, int, int]]:
        """Yield (rank, action, start, end); the two of a pair have the same times."""
        for rank, units in enumerate(self.units):
            for unit, start, end in zip(units, self.start_ns[rank], self.end_ns[rank]):
                for action in unit:
                    yield rank, action, int(start), int(end)

    def trace_events(self) -> Iterator[dict[str, Any]]:
        """Chrome trace events (Perfetto opens them): a track per rank, and its activations as a counter."""
        names = {"F": "forward", "B": "backward", "I": "backward input", "W": "backward weight"}
        for rank in range(self.schedule.num_ranks):
            yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
        lane: dict[tuple[int, int], int] = {}
        for rank, action, start, end in self.actions():
            lane[rank, start] = lane.get((rank, start), -1) + 1  # the second of a pair has a track of its own
            yield {
                "ph": "X",
                "name": f"{action.kind}{action.microbatch}",
                "cat": names[action.kind],
                "pid": rank,
                "tid": lane[rank, start] if end > start else 0,
                "ts": start / 1e3,
                "dur": (end - start) / 1e3,
                "args": {"kind": names[action.kind], "stage": action.stage, "microbatch": action.microbatch},
            }
        for rank in range(self.schedule.num_ranks):
            for when, held in self.activations(rank):
                yield {"ph": "C", "name": "activations", "pid": rank, "ts": when / 1e3, "args": {"held": held}}

    def write_trace(self, path: str | Path) -> Path:
        """Write the timeline for Perfetto or chrome://tracing; gzipped where the name ends in .gz.

        Raises:
            InputError: another ending.
        """
        return write_trace(path, self.trace_events())


def replay(schedule: Schedule, durations: Durations, *, loop: str = "compiled") -> Timeline:
    """Replay a schedule; `loop` is compiled or simpy, the times are the same.

    Raises:
        ValueError: unknown loop, or a table of durations whose shape is not that of the schedule.
    """
    if loop not in ("compiled", "simpy"):
        raise ValueError(f"loop={loop!r} is neither compiled nor simpy")
    shapes = durations.action_ns.shape, durations.hand_over_ns.shape
    if shapes != ((len(KINDS), schedule.num_stages), (2, schedule.num_stages)):
        raise ValueError(f"durations of shape {shapes[0]} and {shapes[1]} for {schedule.num_stages} stages")
    if loop == "simpy":
        return _simulate(schedule, durations)
    graph = graph_of(schedule, paired=durations.pair_permille is not None)
    start, end = graph.times(durations)
    return Timeline(
        schedule,
        graph.units,
        [start[first:last] for first, last in zip(graph.first_of, graph.first_of[1:])],
        [end[first:last] for first, last in zip(graph.first_of, graph.first_of[1:])],
    )


def unit_ns(unit: tuple[Action, ...], durations: Durations) -> int:
    """How long a unit takes."""
    total = sum(int(durations.action_ns[KINDS.index(action.kind), action.stage]) for action in unit)
    if len(unit) > 1 and durations.pair_permille is not None:
        return total * durations.pair_permille // 1000
    return total


def _simulate(schedule: Schedule, durations: Durations) -> Timeline:
    """One process per rank, each doing its list; an action that is done is an event that others wait for."""
    import simpy

    env = simpy.Environment()
    paired = durations.pair_permille is not None
    units = [schedule.units(rank, paired=paired) for rank in range(schedule.num_ranks)]
    done = {action: env.event() for own in units for unit in own for action in unit}
    starts: list[list[int]] = [[] for _ in units]
    ends: list[list[int]] = [[] for _ in units]

    def rank_process(rank: int) -> Generator[Any, int, None]:
        for unit in units[rank]:
            for action in unit:
                for need in schedule.needs(action):
                    made_at = yield done[need]
                    arrives = made_at + hand_over(need, rank)
                    if arrives > env.now:
                        yield env.timeout(arrives - env.now)
            starts[rank].append(int(env.now))
            yield env.timeout(unit_ns(unit, durations))
            ends[rank].append(int(env.now))
            for action in unit:
                done[action].succeed(env.now)

    def hand_over(need: Action, rank: int) -> int:
        if schedule.rank_of[need.stage] == rank:
            return 0
        return int(durations.hand_over_ns[0 if need.kind == "F" else 1, need.stage])

    for rank in range(schedule.num_ranks):
        env.process(rank_process(rank))
    env.run()
    times = [[np.array(own, dtype=np.int64) for own in every] for every in (starts, ends)]
    return Timeline(schedule, units, *times)


@dataclass(frozen=True, eq=False)
class Graph:
    """A schedule as arrays; units are numbered rank by rank.

    Attributes:
        units: per rank.
        first_of: rank -> its first unit, and their number at the end.
        kinds: kind and stage of each action of a unit, two columns of each (-1 where there is one action).
        order: units so that each comes after what it needs.
        follows: the unit before on the same rank, or -1.
        edge_of: unit -> its first edge in the next three, which say what it needs from elsewhere.
        edge_from: unit.
        edge_row: row of `hand_over_ns`, or -1 on the same rank.
        edge_stage: column of `hand_over_ns`.
    """

    units: list[list[tuple[Action, ...]]]
    first_of: np.ndarray
    kinds: np.ndarray
    order: np.ndarray
    follows: np.ndarray
    edge_of: np.ndarray
    edge_from: np.ndarray
    edge_row: np.ndarray
    edge_stage: np.ndarray

    def times(self, durations: Durations) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of every unit."""
        permille = 1000 if durations.pair_permille is None else durations.pair_permille
        tables = self.kinds, self.order, self.follows, self.edge_of, self.edge_from, self.edge_row, self.edge_stage
        return _longest_path(*tables, durations.action_ns, durations.hand_over_ns, permille)

    def makespan_ns(self, durations: Durations) -> int:
        """The last end: what a search over plans asks for."""
        return int(self.times(durations)[1].max())


def graph_of(schedule: Schedule, *, paired: bool) -> Graph:
    """Turn a schedule into arrays.

    Raises:
        ValueError: ranks wait for each other in a circle.
    """
    units = [schedule.units(rank, paired=paired) for rank in range(schedule.num_ranks)]
    first_of = np.cumsum([0, *map(len, units)])
    number = {action: first_of[r] + i for r, own in enumerate(units) for i, unit in enumerate(own) for action in unit}
    flat = [(rank, unit) for rank, own in enumerate(units) for unit in own]
    kinds = np.full((len(flat), 4), -1, dtype=np.int64)
    follows = np.arange(-1, len(flat) - 1)
    follows[first_of[:-1][first_of[:-1] < len(flat)]] = -1
    edges: list[tuple[int, int, int]] = []
    edge_of = [0]
    for place, (rank, unit) in enumerate(flat):
        for column, action in enumerate(unit):
            kinds[place, 2 * column : 2 * column + 2] = KINDS.index(action.kind), action.stage
            for need in schedule.needs(action):
                row = -1 if schedule.rank_of[need.stage] == rank else 0 if need.kind == "F" else 1
                edges.append((number[need], row, need.stage))
        edge_of.append(len(edges))
    table = np.array(edges, dtype=np.int64).reshape(-1, 3)
    order = _sort(follows, np.array(edge_of), table[:, 0].copy())
    if len(order) < len(flat):
        raise ValueError(f"{schedule.name}: ranks wait for each other for ever")
    columns = [np.ascontiguousarray(table[:, column]) for column in range(3)]
    return Graph(units, first_of, kinds, order, follows, np.array(edge_of), *columns)


@lru_cache(maxsize=256)
def graph_by_name(name: str, num_ranks: int, num_microbatches: int, virtual: int = 1, *, paired: bool = False) -> Graph:
    """The same, kept for those that ask again and again with other durations."""
    return graph_of(make_schedule(name, num_ranks, num_microbatches, virtual), paired=paired)


@njit(cache=True)
def _sort(follows: np.ndarray, edge_of: np.ndarray, edge_from: np.ndarray) -> np.ndarray:
    """Topological order (Kahn 1962); shorter than it should be where there is a circle."""
    count = len(follows)
    missing = np.zeros(count, dtype=np.int64)
    out_of = np.zeros(count + 1, dtype=np.int64)
    for unit in range(count):
        missing[unit] = edge_of[unit + 1] - edge_of[unit] + (follows[unit] >= 0)
        if follows[unit] >= 0:
            out_of[follows[unit] + 1] += 1
        for edge in range(edge_of[unit], edge_of[unit + 1]):
            out_of[edge_from[edge] + 1] += 1
    out_of = np.cumsum(out_of)
    fill, out = out_of[:-1].copy(), np.empty(out_of[-1], dtype=np.int64)
    for unit in range(count):
        if follows[unit] >= 0:
            out[fill[follows[unit]]] = unit
            fill[follows[unit]] += 1
        for edge in range(edge_of[unit], edge_of[unit + 1]):
            out[fill[edge_from[edge]]] = unit
            fill[edge_from[edge]] += 1
    order, head, tail = np.empty(count, dtype=np.int64), 0, 0
    for unit in range(count):
        if missing[unit] == 0:
            order[tail] = unit
            tail += 1
    while head < tail:
        unit = order[head]
        head += 1
        for place in range(out_of[unit], out_of[unit + 1]):
            missing[out[place]] -= 1
            if missing[out[place]] == 0:
                order[tail] = out[place]
                tail += 1
    return order[:tail]


@njit(cache=True)
def _longest_path(
    kinds: np.ndarray,
    order: np.ndarray,
    follows: np.ndarray,
    edge_of: np.ndarray,
    edge_from: np.ndarray,
    edge_row: np.ndarray,
    edge_stage: np.ndarray,
    action_ns: np.ndarray,
    hand_over_ns: np.ndarray,
    pair_permille: int,
) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = np.zeros(len(order), dtype=np.int64), np.zeros(len(order), dtype=np.int64)
    for unit in order:
        start = ends[follows[unit]] if follows[unit] >= 0 else 0
        for edge in range(edge_of[unit], edge_of[unit + 1]):
            arrives = ends[edge_from[edge]]
            if edge_row[edge] >= 0:
                arrives += hand_over_ns[edge_row[edge], edge_stage[edge]]
            start = max(start, arrives)
        time = action_ns[kinds[unit, 0], kinds[unit, 1]]
        if kinds[unit, 2] >= 0:
            time = (time + action_ns[kinds[unit, 2], kinds[unit, 3]]) * pair_permille // 1000
        starts[unit], ends[unit] = start, start + time
    return starts, ends


def run_pipeline(
    name: str,
    num_ranks: int,
    num_microbatches: int,
    virtual: int = 1,
    *,
    forward_ms: float = 1.0,
    backward_input_ms: float = 1.0,
    backward_weight_ms: float = 1.0,
    hand_over_ms: float = 0.0,
    together: float | None = None,
    freed_by_input: float = 0.0,
    loop: str = "compiled",
) -> tuple[Timeline, dict[str, Any]]:
    """Replay a schedule by name on equal stages; return the timeline and what it comes to.

    Times are those of 1 / num_ranks of the model. `together` runs a forward beside a backward in that part of their summed
    time (DualPipe). `freed_by_input` is the part of an activation that the gradient of the input gives back. zb_1p and zb_2p
    are made for these times. `bubble_closed_form` is the formula of the schedule's paper where it has one for these times and
    hand-over is free, `bubble` the replayed fraction it speaks of.

    Raises:
        InputError: no such schedule, sizes that it does not take, or a time that is negative or not finite.
    """
    times_ms = {"forward_ms": forward_ms, "input_ms": backward_input_ms, "weight_ms": backward_weight_ms}
    for field, value in {**times_ms, "hand_over_ms": hand_over_ms, "together": together or 0.0}.items():
        if not 0 <= value < 1e9:
            raise InputError("pipeline", field, value, "must be a time from 0 on")
    if not 0 <= freed_by_input <= 1:
        raise InputError("pipeline", "freed_by_input", freed_by_input, "must be a part from 0 to 1")
    F, I, W, comm = (round(1e6 * time) for time in (*times_ms.values(), hand_over_ms))
    try:
        schedule = make_schedule(name, num_ranks, num_microbatches, virtual)
        if name in ("zb_1p", "zb_2p"):
            limit = num_ranks * (1 if name == "zb_1p" else 2)
            made = zb_auto(
                num_ranks,
                num_microbatches,
                forward=F,
                backward_input=I,
                backward_weight=W,
                hand_over=comm,
                max_activations=limit,
                freed_by_input=freed_by_input,
            )
            schedule = replace(made, name=name)
    except ValueError as error:
        raise InputError("pipeline", "--schedule", name, str(error)) from error
    permille = None if together is None else round(1000 * together)
    timeline = replay(schedule, even(schedule, F, I, W, comm, permille), loop=loop)
    waits = bubble_time(name, num_ranks, num_microbatches, virtual, F, I, W) if not comm and permille in (None, 1000) else None
    if name.startswith("dualpipe") and permille is None:
        waits = None
    steady = name in ("zb_h2", "zb_2p", "zb_v")  # without a synchronization before the optimizer
    work = num_microbatches * (F + I + W)
    peaks = schedule.peak_activations(freed_by_input=freed_by_input)
    return timeline, {
        "schedule": name,
        "ranks": num_ranks,
        "microbatches": num_microbatches,
        "virtual": virtual,
        "stages": schedule.num_stages,
        "makespan_ms": timeline.makespan_ns / 1e6,
        "bubble": timeline.steady_bubble_fraction if steady else timeline.bubble_fraction,
        "bubble_closed_form": None if waits is None or not work else waits / (work + waits),
        "bubble_with_flush": timeline.bubble_fraction,
        "idle_ms": [idle / 1e6 for idle in timeline.idle_ns],
        "peak_activations": peaks,
        "peak_activations_closed_form": [
            None if freed_by_input else peak_of(name, num_ranks, num_microbatches, virtual, rank) for rank in range(num_ranks)
        ],
    }
