"""`simulate_fleet(fleet, workload)`: one run of a whole fleet, as a pure function of its inputs and a seed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving import metrics
from llmlab.simulator.serving.cluster import NEVER
from llmlab.simulator.serving.deployment import Deployment, Site, resolve
from llmlab.simulator.serving.energy import BASIS
from llmlab.simulator.serving.failures import NANOSECONDS, Outage, draw_outages
from llmlab.simulator.serving.fleet import STORE, FleetCluster, FleetLog
from llmlab.simulator.serving.pools import Fleet, Pool
from llmlab.simulator.serving.simulate import Loop, SimulationResult, bound_by, why_not_compiled
from llmlab.simulator.serving.slo import Slo, Watch
from llmlab.simulator.workload.sessions import turn_numbers
from llmlab.simulator.workload.workload import Workload

STATES = ("up", "draining", "starting", "warming", "warm", "down", "off")


@dataclass(frozen=True, eq=False, kw_only=True)
class FleetResult(SimulationResult):
    """A run of a fleet; `site` is that of its first pool.

    Attributes:
        fleet: what was deployed.
        sites: of every pool.
        fleet_log: what only a fleet has.
    """

    fleet: Fleet
    sites: tuple[Site, ...]
    fleet_log: FleetLog

    @cached_property
    def pool_of(self) -> list[int]:
        """Pool of each replica."""
        return [number for number, site in enumerate(self.sites) for _ in range(site.deployment.replicas)]

    @cached_property
    def requests(self) -> dict[str, np.ndarray]:
        """The per-request table, with sessions and retries where there are any."""
        table = metrics.request_table(self.workload, self.log)
        table["retries"] = np.array(self.fleet_log.retries)
        if len(self.workload.session):
            table["session"] = self.workload.session
            table["turn"] = turn_numbers(self.workload.session)
        return table

    def sampled(self, most: int = 32) -> list[tuple[BatchShape, int]]:
        """Some steps of the first pool."""
        return self._sampled(0, most)

    def _sampled(self, pool: int, most: int = 32) -> list[tuple[BatchShape, int]]:
        shapes = self.fleet_log.samples[pool].shapes
        return shapes[:: max(1, -(-len(shapes) // most))]

    @cached_property
    def _pool_busy(self) -> list[float]:
        busy = [0.0] * len(self.sites)
        for replica, busy_ns in enumerate(self.log.busy_ns):
            busy[self.pool_of[replica]] += busy_ns
        return busy

    def _over_pools(self, parts: Callable[[int], dict[str, float]]) -> dict[str, float]:
        total, mixed = sum(self._pool_busy), defaultdict[str, float](float)
        for pool, busy in enumerate(self._pool_busy):
            for name, share in parts(pool).items():
                mixed[name] += share * busy / total
        return dict(sorted(mixed.items(), key=lambda pair: -pair[1]))

    @cached_property
    def bound_by(self) -> dict[str, float]:
        """Part of the busy time spent in steps that each resource limits, over all pools."""
        return self._over_pools(lambda pool: bound_by(self.sites[pool].cost, self._sampled(pool)))

    @cached_property
    def breakdown(self) -> dict[str, float]:
        """Part of the busy time by kind of operator, over all pools."""

        def of(pool: int) -> dict[str, float]:
            seconds: dict[str, float] = defaultdict(float)
            for shape, _ in self._sampled(pool):
                for kind, part in self.sites[pool].cost.breakdown(shape).items():
                    seconds[kind] += part
            total = sum(seconds.values())
            return {kind: value / total for kind, value in seconds.items()}

        return self._over_pools(of)

    def step_interval(self, low: str = "0.05", high: str = "0.95") -> tuple[float, float]:
        """Factors between which the real durations should lie, over all pools weighted by their busy time."""
        total = sum(self._pool_busy)
        if not total:
            return 1.0, 1.0
        ends = [0.0, 0.0]
        for pool, busy in enumerate(self._pool_busy):
            steps = self._sampled(pool)
            if not steps:
                continue
            factors = np.array([self.sites[pool].cost.interval(shape, low, high) for shape, _ in steps])
            means = np.average(factors, axis=0, weights=np.array([ns for _, ns in steps], dtype=float))
            ends = [end + float(mean) * busy / total for end, mean in zip(ends, means)]
        return ends[0], ends[1]

    def seconds_by_state(self, pool: int) -> dict[str, float]:
        """Replica-seconds of one pool by state, until the end of the run."""
        own = [replica for replica, at in enumerate(self.pool_of) if at == pool]
        return {state: sum(self.fleet_log.seconds_in(replica, (state,)) for replica in own) for state in STATES}

    def pool_rows(self) -> list[dict[str, Any]]:
        """One row per pool: its devices, time in each state, work, cost and energy."""
        rows = []
        for number, (pool, site) in enumerate(zip(self.fleet.pools, self.sites)):
            seconds = self.seconds_by_state(number)
            own = [replica for replica, at in enumerate(self.pool_of) if at == number]
            devices = site.deployment.devices // site.deployment.replicas
            paid_s = sum(value for state, value in seconds.items() if state != "off")
            busy_s = sum(self.log.busy_ns[replica] for replica in own) / NANOSECONDS
            computing_s = sum(self.fleet_log.computing_ns[replica] for replica in own) / NANOSECONDS
            idle_s = max(0.0, paid_s - seconds["down"] - busy_s)
            busy_j = sum(self.fleet_log.busy_j[replica] for replica in own)
            idle_w = site.profile.device.idle_power_w
            known = site.profile.device.power_w > 0
            up_s = seconds["up"] + seconds["draining"]
            changes = [state for _, replica, state in self.fleet_log.turned if replica in own]
            free = [self.log.least_free_blocks[replica] for replica in own if self.log.least_free_blocks[replica] < 2**62]
            rows.append(
                {
                    "pool": self.fleet.name_of[number],
                    "role": pool.role,
                    "device": site.profile.device.name,
                    "tensor_parallel": site.deployment.tensor_parallel,
                    "devices": devices,
                    "replicas": site.deployment.replicas,
                    "mean_up": up_s / (self.fleet_log.end_ns / NANOSECONDS) if self.fleet_log.end_ns else None,
                    "seconds_by_state": seconds,
                    "starts": sum(state in ("starting", "warming") for state in changes),
                    "outages": sum(state == "down" for state in changes),
                    "utilization": busy_s / up_s if up_s else None,
                    "busy_s": busy_s,
                    "prefill_bound_s": computing_s,
                    "decode_bound_s": busy_s - computing_s,
                    "kv_blocks": site.kv_blocks,
                    "kv_peak_fraction": 1 - min(free) / site.kv_blocks if free else None,
                    "gpu_hours": paid_s * devices / 3600,
                    "usd": paid_s * devices / 3600 * site.price_usd_per_hour,
                    "energy_j": busy_j + idle_w * devices * idle_s if known else None,
                    "idle_energy_j": idle_w * devices * idle_s if known else None,
                }
            )
        return rows

    def metrics(self, slo: Slo | None = None) -> dict[str, Any]:
        """Metrics of the fleet: those of every run, with GPU-hours, cost and energy of what was really on, and what was added.

        Time to first token ends when the client has the first token: `first_token_from` says whether that is made by the
        prefill worker, or reaches it after the cache arrived at the decode worker.
        """
        found = metrics.summarize(self.workload, self.log, self.requests, kv_blocks=self.site.kv_blocks, slo=slo)
        pools = self.pool_rows()
        log, table = self.fleet_log, self.requests
        tokens, all_tokens = found["output_tokens"], found["output_tokens"] + found["prompt_tokens"]
        usd = sum(row["usd"] for row in pools)
        energies = [row["energy_j"] for row in pools]
        energy_j = sum(energies) if None not in energies else None
        up_s = sum(row["seconds_by_state"]["up"] + row["seconds_by_state"]["draining"] for row in pools)
        down_s = sum(row["seconds_by_state"]["down"] for row in pools)
        busy_s = sum(row["busy_s"] for row in pools)
        peaks = [row["kv_peak_fraction"] for row in pools if row["kv_peak_fraction"] is not None]

        def per(amount: float | None, count: float) -> float | None:
            return amount / count if amount is not None and count else None

        found |= {
            "utilization": per(busy_s, up_s),
            "kv_peak_fraction": max(peaks, default=None),
            "gpu_hours": sum(row["gpu_hours"] for row in pools),
            "usd": usd or None,
            "usd_per_million_output_tokens": per(usd * 1e6, tokens) if usd else None,
            "usd_per_million_tokens": per(usd * 1e6, all_tokens) if usd else None,
            "usd_per_request": per(usd, found["finished"]) if usd else None,
            "energy_j": energy_j,
            "energy_basis": BASIS,
            "joules_per_output_token": per(energy_j, tokens),
            "joules_per_request": per(energy_j, found["finished"]),
            "retries": int(sum(log.retries)),
            "retried_requests": int(np.count_nonzero(log.retries)),
            "outages": sum(row["outages"] for row in pools),
            "faults": log.faults,
            "availability": per(up_s, up_s + down_s),
            "pools": pools,
        }
        transfers = [move for move in log.moves if move.source != STORE]
        reads = [move for move in log.moves if move.source == STORE]
        if self.fleet.disaggregated:
            found["first_token_from"] = self.fleet.transfer.first_token
            found["transfers"] = self._moved(transfers) | {"lost": log.lost_moves}
        if self.fleet.prefix_pool is not None:
            found["prefix_reads"] = self._moved(reads) | {"tokens_used": int(sum(log.fetched_tokens))}
        if len(self.workload.session):
            found["sessions"] = self.session_metrics(table)
        return found

    @staticmethod
    def _moved(moves: Sequence[Any]) -> dict[str, Any]:
        waits = np.array([move.start_ns - move.asked_ns for move in moves], dtype=float) / NANOSECONDS
        spans = np.array([move.end_ns - move.start_ns for move in moves], dtype=float) / NANOSECONDS
        return {
            "count": len(moves),
            "tokens": int(sum(move.tokens for move in moves)),
            "wait_s": metrics.statistics(waits),
            "transfer_s": metrics.statistics(spans),
        }

    def session_metrics(self, table: dict[str, np.ndarray]) -> dict[str, Any]:
        """Whole sessions or tasks: how long, how many turns, and what the turns after the first find cached."""
        first = np.flatnonzero(table["turn"] == 0)
        turns = np.diff(np.append(first, len(self.workload)))
        ends = np.array([NEVER if when == NEVER else when for when in self.log.finished_ns])
        sent = np.array(self.log.sent_ns)
        last = first + turns - 1
        done = ends[last] != NEVER
        whole_s = np.where(done, (ends[last] - sent[first]) / NANOSECONDS, np.nan)
        served_s = np.add.reduceat(np.nan_to_num(table["e2e_s"]), first)
        later = (table["turn"] > 0) & np.isfinite(table["e2e_s"])
        begun = (table["turn"] == 0) & np.isfinite(table["e2e_s"])
        prompts = int(table["prompt_tokens"][later].sum())
        return {
            "count": len(first),
            "finished": int(done.sum()),
            "turns": metrics.statistics(turns.astype(float)),
            "session_s": metrics.statistics(whole_s),
            "served_s": metrics.statistics(np.where(done, served_s, np.nan)),
            "first_turn_ttft_s": metrics.statistics(table["ttft_s"][begun]),
            "later_turn_ttft_s": metrics.statistics(table["ttft_s"][later]),
            "later_turns_cached_fraction": float(table["cached_tokens"][later].sum() / prompts) if prompts else None,
        }

    def trace_events(self) -> Iterator[dict[str, Any]]:
        """Chrome trace events: those of every run, each replica's states, and every transfer on both of its ends."""
        yield from super().trace_events()
        log = self.fleet_log
        since: dict[int, tuple[int, str]] = {}
        for when, replica, state in [*log.turned, *((log.end_ns, number, "") for number in range(len(self.pool_of)))]:
            if replica in since and since[replica][1] != "up" and when > since[replica][0]:
                start, name = since[replica]
                span = {"ts": start / 1e3, "dur": (when - start) / 1e3}
                yield {"ph": "X", "name": name, "cat": "state", "pid": replica, "tid": 2, **span}
            since[replica] = (when, state)
        for number, move in enumerate(log.moves):
            name = "prefix read" if move.source == STORE else "KV transfer"
            arguments = {"request": move.request, "tokens": move.tokens, "from": move.source, "to": move.target}
            for pid in (move.source, move.target):
                if pid != STORE:
                    common = {"cat": "transfer", "id": f"move {number} {pid}", "pid": pid, "tid": 3, "name": name}
                    yield {"ph": "b", "ts": move.start_ns / 1e3, "args": arguments, **common}
                    yield {"ph": "e", "ts": move.end_ns / 1e3, **common}


def as_fleet(deployment: Deployment | Site | Fleet) -> Fleet:
    """One pool of equal replicas as a fleet; its router is kept."""
    if isinstance(deployment, Fleet):
        return deployment
    plain = deployment.deployment if isinstance(deployment, Site) else deployment
    return Fleet((Pool(plain),), router=plain.router)


def simulate_fleet(
    fleet: Fleet | Deployment | Site,
    workload: Workload,
    *,
    seed: int = 0,
    record: Literal["requests", "steps", "states"] = "requests",
    give_up: Slo | None = None,
    stretch: float = 1.0,
    path: Loop = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> FleetResult:
    """Simulate a workload on a fleet until every request is finished, refused or failed.

    Args:
        fleet: what serves it.
        workload: what is sent.
        seed: of outages and of the router's random draws.
        record: "steps" keeps one entry per step for the timeline; "states" also what each step saw, for pictures over time.
        give_up: stop as soon as this objective cannot be met any more.
        stretch: every step takes this many times as long.
        path: "simpy" is the readable loop, "compiled" the quick one with the same events; see `simulate`.
        progress: called now and then with (requests done, requests).

    Raises:
        InputError: something named is unknown, a model does not fit, or the compiled path was asked for something it does not
            know.
        ValueError: `stretch` is not positive.
    """
    if not 0 < stretch < float("inf"):
        raise ValueError(f"stretch={stretch} must be positive")
    given = fleet if isinstance(fleet, Site) else None
    fleet = as_fleet(fleet)
    sites = (given,) if given is not None else tuple(resolve(pool.deployment) for pool in fleet.pools)
    block_tokens = sites[0].deployment.block_tokens
    if workload.block_hashes and sites[0].deployment.prefix_caching:
        sizes = sorted((workload.hash_block_tokens, block_tokens))
        if sizes[1] % sizes[0]:
            why = f"does not fit prefix identities of {workload.hash_block_tokens} tokens"
            raise InputError(workload.name, "block_tokens", block_tokens, why)
    started = time.perf_counter()
    replicas = [site for site in sites for _ in range(site.deployment.replicas)]
    outages: list[Outage] = []
    faults: dict[str, int] = {}
    if (failures := fleet.failures) is not None:
        horizon_s = failures.horizon_s if failures.horizon_s is not None else max(3600.0, 2 * workload.span_s)
        outages, faults = draw_outages(
            failures,
            devices=[site.deployment.devices // site.deployment.replicas for site in replicas],
            devices_per_node=[site.profile.device.devices_per_node for site in replicas],
            horizon_s=horizon_s,
            seed=seed,
        )
    router = make_router(
        fleet.router or "least_outstanding", len(replicas), np.random.default_rng(seed), block_tokens=block_tokens
    )
    router.delay(round(fleet.staleness_s * NANOSECONDS))

    def reason_against() -> str | None:
        from llmlab.simulator.serving.compiled.fleet import reason_against_fleet

        return "states" if record == "states" else reason_against_fleet(workload, fleet, sites, router)

    reason = why_not_compiled(path, workload, reason_against)
    options: dict[str, Any] = {
        "outages": outages,
        "stretch": stretch,
        "record_steps": record != "requests",
        "watch": Watch(give_up, workload.output_tokens) if give_up is not None else None,
        "progress": progress,
    }
    if reason:
        cluster = FleetCluster(workload, fleet, sites, router, record_states=record == "states", **options)
        log, fleet_log = cluster.run(), cluster.fleet_log
    else:
        from llmlab.simulator.serving.compiled.fleet import CompiledFleet

        log, fleet_log = CompiledFleet(workload, fleet, sites, router, **options).play()
    fleet_log.faults = faults
    return FleetResult(
        sites[0],
        workload,
        log,
        time.perf_counter() - started,
        "simpy" if reason else "compiled",
        reason,
        fleet=fleet,
        sites=sites,
        fleet_log=fleet_log,
    )


def with_pool(fleet: Fleet, number: int, **changes: Any) -> Fleet:
    """The same fleet with one pool's deployment changed."""
    pools = list(fleet.pools)
    pools[number] = replace(pools[number], deployment=replace(pools[number].deployment, **changes))
    return replace(fleet, pools=tuple(pools))
