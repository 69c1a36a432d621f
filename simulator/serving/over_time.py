"""A fleet's state over time, in equal bins: means of what was piecewise constant, integrated exactly. Units: seconds, watts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmlab.simulator.serving.cluster import NEVER
from llmlab.simulator.serving.failures import NANOSECONDS
from llmlab.simulator.serving.simulate_fleet import FleetResult


@dataclass(frozen=True)
class OverTime:
    """Means per bin; one row per pool where there is more than one axis.

    Attributes:
        edges_s: of the bins, one more than bins.
        queued: requests sent and not yet begun.
        running: requests on the replicas' batches.
        kv_fraction: KV blocks in use, of those of serving replicas.
        serving: replicas up or draining.
        starting: replicas starting or warming.
        warm: replicas loaded and idle.
        down: replicas out by a failure.
        watts: of all devices that are on.
    """

    pools: list[str]
    edges_s: np.ndarray
    queued: np.ndarray
    running: np.ndarray
    kv_fraction: np.ndarray
    serving: np.ndarray
    starting: np.ndarray
    warm: np.ndarray
    down: np.ndarray
    watts: np.ndarray


def mean_per_bin(begin: np.ndarray, end: np.ndarray, value: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean over each bin of the sum of boxes of height `value` from `begin` to `end`.

    >>> mean_per_bin(np.array([0.0, 1.0]), np.array([3.0, 2.0]), np.array([2.0, 4.0]), np.array([0.0, 2.0, 4.0])).tolist()
    [4.0, 1.0]
    """
    times = np.concatenate((begin, end))
    steps = np.concatenate((value, -value))
    order = np.argsort(times, kind="stable")
    times, slope = times[order], np.cumsum(steps[order])
    if not len(times):
        return np.zeros(len(edges) - 1)
    area = np.concatenate(([0.0], np.cumsum(slope[:-1] * np.diff(times))))
    place = np.searchsorted(times, edges, side="right") - 1
    inside = np.where(place >= 0, area[np.maximum(place, 0)] + slope[np.maximum(place, 0)] * (edges - times[place]), 0.0)
    return np.diff(inside) / np.diff(edges)


def over_time(result: FleetResult, bins: int = 200) -> OverTime:
    """Reduce what each step saw to means per bin.

    Raises:
        ValueError: the run was made without `record="states"`.
    """
    fleet_log, log = result.fleet_log, result.log
    states = fleet_log.states
    if states is None:
        raise ValueError('no states were recorded: simulate_fleet(..., record="states")')
    end_s = max(fleet_log.end_ns, 1) / NANOSECONDS
    edges = np.linspace(0.0, end_s, bins + 1)
    begin = np.array(states.at_ns) / NANOSECONDS
    end = np.minimum(begin + np.array(states.duration_ns) / NANOSECONDS, end_s)
    replica = np.array(states.replica, dtype=int)
    pool_of = np.array(result.pool_of)
    sent, begun = np.array(log.sent_ns), np.array(log.scheduled_ns)
    known = sent != NEVER
    waited = np.where(begun == NEVER, fleet_log.end_ns, begun)
    for index in log.refused:
        if begun[index] == NEVER:
            known[index] = False
    since = sent[known] / NANOSECONDS
    queued = mean_per_bin(since, np.maximum(since, waited[known] / NANOSECONDS), np.ones(int(known.sum())), edges)
    spells: dict[str, list[list[tuple[float, float]]]] = {}
    current: dict[int, tuple[int, str]] = {}
    last = [(fleet_log.end_ns, number, "") for number in range(len(pool_of))]
    for when, number, state in [*fleet_log.turned, *last]:
        if number in current:
            start, name = current[number]
            spells.setdefault(name, [[] for _ in result.sites])[pool_of[number]].append(
                (start / NANOSECONDS, when / NANOSECONDS)
            )
        current[number] = (when, state)

    def replicas_in(names: tuple[str, ...], pool: int) -> np.ndarray:
        own = [spell for name in names for spell in spells.get(name, [[] for _ in result.sites])[pool]]
        table = np.array(own, dtype=float).reshape(-1, 2)
        return mean_per_bin(table[:, 0], table[:, 1], np.ones(len(table)), edges)

    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("running", "kv", "serving", "starting", "warm", "down", "watts")}
    for pool, site in enumerate(result.sites):
        mine = pool_of[replica] == pool if len(replica) else np.zeros(0, dtype=bool)
        boxes = (begin[mine], end[mine])
        serving = replicas_in(("up", "draining"), pool)
        starting, warm = replicas_in(("starting", "warming"), pool), replicas_in(("warm",), pool)
        used = mean_per_bin(*boxes, np.array(states.used_blocks, dtype=float)[mine], edges)
        idle_w = site.profile.device.idle_power_w * (site.deployment.devices // site.deployment.replicas)
        busy = mean_per_bin(*boxes, np.ones(int(mine.sum())), edges)
        on = serving + starting + warm
        rows["running"].append(mean_per_bin(*boxes, np.array(states.running, dtype=float)[mine], edges))
        rows["kv"].append(np.divide(used, serving * site.kv_blocks, out=np.zeros(bins), where=serving > 1e-9))
        rows["serving"].append(serving)
        rows["starting"].append(starting)
        rows["warm"].append(warm)
        rows["down"].append(replicas_in(("down",), pool))
        rows["watts"].append(mean_per_bin(*boxes, np.array(states.watts)[mine], edges) + idle_w * np.maximum(0.0, on - busy))
    arrays = {name: np.array(values) for name, values in rows.items()}
    return OverTime(
        result.fleet.name_of,
        edges,
        queued,
        arrays["running"],
        arrays["kv"],
        arrays["serving"],
        arrays["starting"],
        arrays["warm"],
        arrays["down"],
        arrays["watts"],
    )
