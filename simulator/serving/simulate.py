"""`simulate(deployment, workload)`: one run of a whole deployment, as a pure function of its inputs and a seed."""

from __future__ import annotations

import io
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.files import check_ending, write_atomic
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.serving import metrics, sketch
from llmlab.simulator.serving.cluster import NEVER, Cluster, Log
from llmlab.simulator.serving.deployment import Deployment, Site, resolve
from llmlab.simulator.serving.energy import Power, balance_rows
from llmlab.simulator.serving.slo import Slo, Watch
from llmlab.simulator.tracing import write_trace
from llmlab.simulator.workload.workload import Workload

Loop = Literal["auto", "simpy", "compiled"]
EXACT_REQUESTS = 200_000
"""Up to so many requests every latency is kept and sorted."""

QUICK_TOKENS = 20_000
"""Below so many tokens to emit the readable loop is done before the compiled one is loaded."""

COMPILING_TOKENS = 5_000_000
"""What the readable loop emits in about the time that compiling the other takes, once on a machine. Until the runs of a process
have that many together, "auto" does not start to compile."""

_left_to_simpy = [0]  # tokens of runs that did not wait for the compiler

REQUEST_ENDINGS = (".csv", ".parquet")


def bound_by(cost: StepCost, steps: Sequence[tuple[BatchShape, int]]) -> dict[str, float]:
    """Part of the steps' time that each resource limits, the largest first."""
    nanoseconds: dict[str, float] = defaultdict(float)
    for shape, duration_ns in steps:
        nanoseconds[cost.binding(shape)] += duration_ns
    total = sum(nanoseconds.values())
    return {name: value / total for name, value in sorted(nanoseconds.items(), key=lambda pair: -pair[1])}


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """A run: what was simulated, what happened, and how long it took to find out.

    Attributes:
        wall_s: seconds this computer needed; the only field that differs between equal runs.
        path: "simpy" or "compiled", the loop that ran; the log is the same.
        path_reason: why it was not the compiled one.
        stream: quantiles come from sketches, no table of all requests is kept.
    """

    site: Site
    workload: Workload
    log: Log
    wall_s: float
    path: str = "simpy"
    path_reason: str = ""
    stream: bool = False

    @property
    def deployment(self) -> Deployment:
        """What was deployed."""
        return self.site.deployment

    @cached_property
    def requests(self) -> dict[str, np.ndarray]:
        """The per-request table, column by column."""
        return metrics.request_table(self.workload, self.log)

    def summary(self, slo: Slo | None = None) -> dict[str, Any]:
        """Metrics as one plain dictionary, with `bound_by` and `wall_s`; see `metrics.summarize`."""
        how = {"wall_s": self.wall_s, "path": self.path, "path_reason": self.path_reason}
        return self.metrics(slo) | how | {"bound_by": self.bound_by}

    def metrics(self, slo: Slo | None = None) -> dict[str, Any]:
        """Metrics alone: equal for equal runs, and quick."""
        device = self.site.profile.device
        power = Power.of(device, balance_rows(self.site.cost))
        return metrics.summarize(
            self.workload,
            self.log,
            None if self.stream else self.requests,
            devices_per_replica=self.deployment.devices // self.deployment.replicas,
            kv_blocks=self.site.kv_blocks,
            usd_per_hour=self.site.usd_per_hour,
            power_w=device.power_w,
            idle_power_w=device.idle_power_w,
            busy_power_w=power.mean_busy_w(self.log.sample.shapes),
            slo=slo,
        )

    def sampled(self, most: int = 32) -> list[tuple[BatchShape, int]]:
        """Some of the steps, evenly spaced, with their nanoseconds: pricing one in parts takes milliseconds."""
        shapes = self.log.sample.shapes
        return shapes[:: max(1, -(-len(shapes) // most))]

    @cached_property
    def bound_by(self) -> dict[str, float]:
        """Part of the busy time spent in steps that each resource limits, from a sample of the steps."""
        return bound_by(self.site.cost, self.sampled())

    @cached_property
    def breakdown(self) -> dict[str, float]:
        """Part of the busy time by kind of operator, from a sample of the steps."""
        seconds: dict[str, float] = defaultdict(float)
        for shape, _ in self.sampled():
            for kind, part in self.site.cost.breakdown(shape).items():
                seconds[kind] += part
        total = sum(seconds.values())
        return {kind: value / total for kind, value in sorted(seconds.items(), key=lambda pair: -pair[1])}

    def step_interval(self, low: str = "0.05", high: str = "0.95") -> tuple[float, float]:
        """Factors between which the real durations should lie, from the calibration's residuals, weighted by time."""
        steps = self.sampled()
        if not steps:
            return 1.0, 1.0
        factors = np.array([self.site.cost.interval(shape, low, high) for shape, _ in steps])
        weights = np.array([duration_ns for _, duration_ns in steps], dtype=float)
        lower, upper = np.average(factors, axis=0, weights=weights)
        return float(lower), float(upper)

    def write_requests(self, path: str | Path) -> Path:
        """Write the per-request table as CSV or, where the name ends in .parquet, as Parquet.

        Raises:
            InputError: any other ending.
        """
        import pandas as pd

        path = Path(path)
        check_ending(path, REQUEST_ENDINGS)
        frame = pd.DataFrame(self.requests)
        if path.suffix == ".parquet":
            whole = io.BytesIO()
            frame.to_parquet(whole, index=False)
            return write_atomic(path, whole.getvalue())
        return write_atomic(path, frame.to_csv(index=False, float_format="%.9f"))

    def trace_events(self) -> Iterator[dict[str, Any]]:
        """Chrome trace events (Perfetto opens them): per replica its steps, and per request queue, prefill and decode.

        Raises:
            ValueError: the run was made without `record="steps"`.
        """
        steps = self.log.steps
        if steps is None:
            raise ValueError('no steps were recorded: simulate(..., record="steps")')
        for replica in range(len(self.log.busy_ns)):
            yield {"ph": "M", "name": "process_name", "pid": replica, "tid": 0, "args": {"name": f"replica {replica}"}}
        for i in range(len(steps.replica)):
            prefill, decode = steps.prefill_tokens[i], steps.decode_requests[i]
            kind = "mixed" if prefill and decode else "prefill" if prefill else "decode"
            yield {
                "ph": "X",
                "name": kind,
                "pid": steps.replica[i],
                "tid": 0,
                "ts": steps.start_ns[i] / 1e3,
                "dur": steps.duration_ns[i] / 1e3,
                "args": {
                    "prefill_tokens": prefill,
                    "decode_requests": decode,
                    "context_tokens": steps.context_tokens[i],
                    "waiting": steps.waiting[i],
                    "preempted": steps.preempted[i],
                },
            }
        log = self.log
        for request, finished_ns in enumerate(log.finished_ns):
            if finished_ns == NEVER:
                continue
            common = {"cat": "request", "id": request, "pid": log.replica[request], "tid": 1}
            marks = (log.sent_ns[request], log.scheduled_ns[request], log.first_token_ns[request], finished_ns)
            for name, start_ns, end_ns in zip(("queue", "prefill", "decode"), marks, marks[1:]):
                yield {"ph": "b", "name": name, "ts": start_ns / 1e3, **common}
                yield {"ph": "e", "name": name, "ts": end_ns / 1e3, **common}

    def write_trace(self, path: str | Path) -> Path:
        """Write the timeline for Perfetto or chrome://tracing; gzipped where the name ends in .gz."""
        return write_trace(path, self.trace_events())


def why_not_compiled(path: Loop, workload: Workload, reason_against: Callable[[], str | None]) -> str:
    """Say why a run takes the readable loop, or nothing where it takes the compiled one.

    Args:
        path: what was asked for.
        workload: what is sent.
        reason_against: says what of it the compiled loop does not know.

    Raises:
        InputError: the compiled path was asked for something it does not know.
    """
    if path == "simpy":
        return "chosen"
    tokens = int(workload.output_tokens.sum())
    if path == "auto" and tokens < QUICK_TOKENS:
        return f"fewer than {QUICK_TOKENS} tokens to emit"
    if reason := reason_against():
        if path == "compiled":
            raise InputError("simulate", "path", path, f"does not know: {reason}")
        return reason
    from llmlab.simulator.serving.compiled.run import is_compiled

    if path == "auto" and not is_compiled():
        _left_to_simpy[0] += tokens
        if _left_to_simpy[0] < COMPILING_TOKENS:
            return "the quick loop is not compiled yet, and that would take longer"
    return ""


def simulate(
    deployment: Deployment | Site,
    workload: Workload,
    *,
    seed: int = 0,
    record: Literal["requests", "steps"] = "requests",
    give_up: Slo | None = None,
    stretch: float = 1.0,
    path: Loop = "auto",
    stream: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SimulationResult:
    """Simulate a workload on a deployment until every request is finished or refused.

    Open loop sends requests at their times, a closed loop (`workload.clients`) as its clients are free, a burst or offline
    job is a workload whose requests all arrive at 0, and a static batch is such a burst that fits in `max_num_seqs`.

    Args:
        deployment: what serves it.
        workload: what is sent.
        seed: of the router's random draws.
        record: "steps" keeps one entry per step too, for the timeline.
        give_up: stop as soon as this objective cannot be met any more; `log.gave_up` then says so.
        stretch: every step takes this many times as long as the cost model says; an end of `step_interval` gives a pessimistic
            or an optimistic run.
        path: "simpy" is the readable loop, "compiled" the quick one with the same events. "auto" takes the compiled one where
            it knows all that is asked for and there is enough to do to be worth loading it.
        stream: take quantiles from sketches instead of keeping every latency; None does so above `EXACT_REQUESTS` requests
            where the library for it is installed.
        progress: called now and then with (requests done, requests).

    Raises:
        InputError: something the deployment names is unknown, the model does not fit, or the compiled path was asked for
            something it does not know.
        ValueError: `stretch` is not positive.
    """
    if not 0 < stretch < math.inf:
        raise ValueError(f"stretch={stretch} must be positive")
    if len(workload.session):  # turns wait for answers: the fleet knows how
        from llmlab.simulator.serving.simulate_fleet import simulate_fleet

        return simulate_fleet(
            deployment, workload, seed=seed, record=record, give_up=give_up, stretch=stretch, path=path, progress=progress
        )
    site = deployment if isinstance(deployment, Site) else resolve(deployment)
    if workload.block_hashes and site.deployment.prefix_caching:
        sizes = sorted((workload.hash_block_tokens, site.deployment.block_tokens))
        if sizes[1] % sizes[0]:
            why = f"does not fit prefix identities of {workload.hash_block_tokens} tokens"
            raise InputError(workload.name, "block_tokens", site.deployment.block_tokens, why)
    started = time.perf_counter()
    replicas = site.deployment.replicas
    schedulers = [site.new_scheduler() for _ in range(replicas)]
    block_tokens = site.deployment.block_tokens
    router = make_router(site.deployment.router, replicas, np.random.default_rng(seed), block_tokens=block_tokens)
    options: dict[str, Any] = {
        "block_tokens": block_tokens if site.deployment.prefix_caching else 0,
        "frontend_ns": round(site.engine.host_request_s * 1e9),
        "lag_steps": site.engine.scheduling_lag_steps,
        "longest_tokens": site.longest_tokens,
        "record_steps": record == "steps",
        "watch": Watch(give_up, workload.output_tokens) if give_up is not None else None,
        "progress": progress,
    }
    if stream is None:
        stream = len(workload) > EXACT_REQUESTS and sketch.available()
    if stream:
        sketch.require()

    def reason_against() -> str | None:
        from llmlab.simulator.serving.compiled import run

        return run.reason_against(workload, schedulers, site.cost, router)

    reason = why_not_compiled(path, workload, reason_against)
    if not reason:
        from llmlab.simulator.serving.compiled.run import CompiledCluster

        compiled = CompiledCluster(workload, schedulers, site.cost, router, stretch=stretch, stream=stream, **options)
        log = compiled.run()
        return SimulationResult(site, workload, log, time.perf_counter() - started, "compiled", stream=stream)
    step_ns = site.cost.step_ns
    if stretch != 1.0:

        def step_ns(shape: BatchShape) -> int:
            return math.ceil(stretch * site.cost.step_ns(shape))

    log = Cluster(workload, schedulers, step_ns, router, **options).run()
    return SimulationResult(site, workload, log, time.perf_counter() - started, "simpy", reason, stream)
