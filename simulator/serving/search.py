"""Options of a plan, how one is tried, and the search in order of price. Units: seconds, tokens, US dollars per hour."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.serving.bounds import bounds, context_rate, demand
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.simulate import SimulationResult, simulate
from llmlab.simulator.serving.slo import Slo, Target
from llmlab.simulator.sweep import Engine, Store, sweep
from llmlab.simulator.workload.workload import Workload

WINDOW_S, WINDOW_REQUESTS = 120.0, 2000
"""The busiest stretch that options are tried on first: this long, shorter (down to a quarter) where it holds more requests."""

NUM_SEQS = (32, 64, 128, 256, 512)
BATCHED_TOKENS = (512, 1024, 2048, 4096, 8192)
"""Batch and chunk sizes that are tried; a batch larger than the chunk is no option."""

HOPELESS = 3.0
"""A run on the busiest stretch is stopped once it must miss a limit by this factor, and not tried on the whole workload."""

ROUND = 24
"""Tasks that are handed out together, at least: whole prices are added until there are this many."""

FURTHER = 2.0
"""A runner-up is looked for up to this many times the answer's price."""

UNCAPPED = ("chunked_prefill", "continuous_batching")
"""Schedulers for which a batch size that is never reached changes nothing."""

ON_WHOLE, WINDOW_ONLY = "simulated on the whole workload", "hopeless on the busiest stretch"

DEGREES = ("tensor_parallel", "expert_parallel", "attention_data_parallel", "pipeline_parallel")

Progress = Callable[[str, int, int], None]


def layout(deployment: Deployment) -> str:
    """How a replica shares a model among its devices, as in `TP8 EP8`."""
    degrees = {
        "TP": deployment.tensor_parallel,
        "EP": deployment.expert_parallel,
        "DP": deployment.attention_data_parallel,
        "PP": deployment.pipeline_parallel,
    }
    return " ".join(f"{name}{degree}" for name, degree in degrees.items() if degree > 1 or name == "TP")


@dataclass(frozen=True)
class Point:
    """One simulated option.

    Attributes:
        level: "window" (the busiest stretch) or "whole".
        complete: the run went to its end; otherwise its values are those at the moment it was given up.
        ratio: the worst of value / limit over the objective's clauses; at most 1 where it is kept.
        values: every clause's measured value in seconds.
        steps: some of its steps with their nanoseconds, to tell what binds.
        same_run: not simulated itself: its batch size is never reached, like that of an option that was.
        drawn_level: "window" where a run on the whole workload was given up and the values are those of the stretch.
    """

    deployment: Deployment
    usd_per_hour: float
    level: str
    kept: bool
    complete: bool
    ratio: float
    broken: tuple[str, ...]
    values: Mapping[str, float | None]
    summary: Mapping[str, Any]
    steps: tuple[tuple[BatchShape, int], ...]
    same_run: bool = False
    drawn_level: str = ""

    @property
    def values_level(self) -> str:
        """Of which level its values are: "" where the only run was given up."""
        return self.drawn_level or (self.level if self.complete else "")

    @property
    def order(self) -> tuple[float, float, float, int, int]:
        """Cheapest first, then the largest margin, then the sizes nearest to 256 requests and 2048 tokens."""
        seqs, batched = self.deployment.max_num_seqs or 256, self.deployment.max_num_batched_tokens or 2048
        unusual = abs(math.log2(seqs / 256)) + abs(math.log2(batched / 2048))
        return self.usd_per_hour, self.ratio, unusual, seqs, batched

    @property
    def group(self) -> tuple[str, int]:
        """Device and tensor parallelism."""
        return str(self.deployment.device), self.deployment.tensor_parallel

    @property
    def kind(self) -> tuple[str, str, int]:
        """Device, layout of a replica and replicas: what a runner-up differs in."""
        return str(self.deployment.device), layout(self.deployment), self.deployment.replicas

    @property
    def label(self) -> str:
        """Short name, as in `2 x TP4 h100`."""
        return f"{self.deployment.replicas} x {layout(self.deployment)} {self.deployment.device}"

    @property
    def simulated(self) -> str:
        """At which level its figures are, in words."""
        return self.level if self.complete else f"{self.level}, given up"

    def row(self) -> dict[str, Any]:
        """One line of a table."""
        deployment, summary = self.deployment, self.summary
        return {
            "gpu": str(deployment.device),
            "tensor_parallel": deployment.tensor_parallel,
            "layout": layout(deployment),
            "expert_parallel": deployment.expert_parallel,
            "attention_data_parallel": deployment.attention_data_parallel,
            "pipeline_parallel": deployment.pipeline_parallel,
            "replicas": deployment.replicas,
            "gpus": deployment.devices,
            "max_num_seqs": deployment.max_num_seqs,
            "max_num_batched_tokens": deployment.max_num_batched_tokens,
            "weight_dtype": deployment.weight_dtype,
            "kv_dtype": deployment.kv_dtype,
            "scheduler": deployment.scheduler,
            "router": deployment.router,
            "usd_per_hour": round(self.usd_per_hour, 6),
            "usd_per_million_output_tokens": summary["usd_per_million_output_tokens"],
            **{f"{name}_s": value for name, value in self.values.items()},
            "utilization": summary["utilization"],
            "kv_peak_fraction": summary["kv_peak_fraction"],
            "joules_per_output_token": summary["joules_per_output_token"],
            "kept": self.kept,
            "simulated": self.simulated,
        }


def busiest(workload: Workload) -> Workload:
    """The stretch options are tried on first; a closed loop has none and is simulated whole."""
    if workload.clients:
        return workload
    window = workload.peak_window(WINDOW_S)
    if len(window) <= WINDOW_REQUESTS:
        return window
    return workload.peak_window(WINDOW_S * max(0.25, WINDOW_REQUESTS / len(window)))


def value_of(summary: Mapping[str, Any], target: Target) -> float | None:
    """What a summary says about one clause, in seconds."""
    return summary[f"{target.metric}_s"].get(target.statistic)


def judge(result: SimulationResult, slo: Slo, level: str) -> Point:
    """Turn a run into a point."""
    summary = result.metrics(slo)
    values = {f"{target.metric}_{target.statistic}": value_of(summary, target) for target in slo.targets}
    ratios = [value / target.seconds for target, value in zip(slo.targets, values.values()) if value is not None]
    whole = not result.log.refused and not result.log.gave_up
    return Point(
        deployment=result.deployment,
        usd_per_hour=result.site.usd_per_hour,
        level=level,
        kept=bool(summary["slo_met"]) and whole,
        complete=not result.log.gave_up,
        ratio=max(ratios, default=0.0) if whole else max([*ratios, HOPELESS]),
        broken=tuple(summary["slo_broken"]),
        values=values,
        summary=summary,
        steps=tuple(result.sampled(16)),
    )


def most_in_flight(result: SimulationResult) -> int:
    """The most requests any replica held at once, from when they were sent to when they were answered."""
    table = result.requests
    most = 0
    for replica in range(result.deployment.replicas):
        own = table["replica"] == replica
        sent_s = table["arrival_s"][own]
        ended_s = np.where(np.isfinite(table["e2e_s"][own]), sent_s + table["e2e_s"][own], np.inf)
        begun = np.searchsorted(np.sort(sent_s), np.sort(sent_s), side="right")
        most = max(most, int((begun - np.searchsorted(np.sort(ended_s), np.sort(sent_s), side="left")).max(initial=0)))
    return most


@dataclass(frozen=True)
class Task:
    """What one worker does at a time: options that differ in batch size only.

    Attributes:
        deployment: all but the batch size.
        seqs: batch sizes, descending.
        factor: requests arrive this many times as fast (a closed loop has so many times the clients).
        tighter: limits are this many times as long.
        stretch: every step takes this many times as long.
        only: run at this level alone, and stop once a limit must be missed by `give_up`.
    """

    deployment: Deployment
    seqs: tuple[int, ...]
    factor: float = 1.0
    tighter: float = 1.0
    stretch: float = 1.0
    only: str = ""
    give_up: float = HOPELESS

    @property
    def name(self) -> str:
        """Everything it says, as text: part of its key in a store."""
        return repr(self)


@dataclass(frozen=True)
class Context:
    """What every task shares: the workload at both levels, the objective and the seed."""

    loads: Mapping[str, Workload]
    slo: Slo
    seed: int


def _scaled(workload: Workload, factor: float) -> Workload:
    if factor == 1.0:
        return workload
    if workload.clients:
        return workload.with_clients(max(1, round(factor * workload.clients)), workload.think_ns / 1e9)
    return workload.at_rate(factor)


def _run(context: Context, task: Task, seqs: int, level: str, give_up: float) -> tuple[Point, int]:
    slo = context.slo.relaxed(task.tighter) if task.tighter != 1.0 else context.slo
    result = simulate(
        replace(task.deployment, max_num_seqs=seqs),
        _scaled(context.loads[level], task.factor),
        seed=context.seed,
        give_up=slo.relaxed(give_up),
        stretch=task.stretch,
    )
    return judge(result, slo, level), most_in_flight(result)


def work(context: Context, task: Task) -> list[dict[str, Any]]:
    """Simulate every batch size of a task: on the busiest stretch, then, where that leaves hope, on the whole workload.

    A run in which no replica ever held more requests than a smaller size allows is that size's run too.
    """
    both = context.loads["window"] is not context.loads["whole"] and not task.only
    done: list[dict[str, Any]] = []
    last: list[Point] = []
    held = math.inf
    for seqs in task.seqs:
        deployment = replace(task.deployment, max_num_seqs=seqs)
        if last and held <= seqs and deployment.scheduler in UNCAPPED:
            last = [replace(point, deployment=deployment, same_run=True) for point in last]
        else:
            first, held = _run(context, task, seqs, task.only or ("window" if both else "whole"), task.give_up)
            last = [first]
            if both and first.complete:
                final, whole_held = _run(context, task, seqs, "whole", 1.0)
                last.append(final)
                held = max(held, whole_held)
        done += [_plain(point) for point in last]
    return done


def _plain(point: Point) -> dict[str, Any]:
    """A point as JSON can hold it; the deployment is its batch size, for the task says the rest."""
    plain = {name: getattr(point, name) for name in point.__dataclass_fields__ if name not in ("deployment", "steps")}
    plain["seqs"] = point.deployment.max_num_seqs
    plain["steps"] = [[asdict(shape), duration_ns] for shape, duration_ns in point.steps]
    return plain


def _point(task: Task, plain: Mapping[str, Any]) -> Point:
    fields = dict(plain)
    steps = []
    for shape, duration_ns in fields.pop("steps"):
        shape["prefill"] = tuple(tuple(pair) for pair in shape["prefill"])
        steps.append((BatchShape(**shape), duration_ns))
    deployment = replace(task.deployment, max_num_seqs=fields.pop("seqs"))
    return Point(deployment, **fields | {"broken": tuple(fields["broken"]), "steps": tuple(steps)})


@dataclass
class Search:
    """The state of a search. Every option it considers is counted once in `counts`."""

    slo: Slo
    workload: Workload
    window: Workload
    max_gpus: int
    seed: int
    engine: Engine
    store: Store | None
    report: Progress
    tasks: list[tuple[float, Task]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    simulations: int = 0
    stored_for: str = ""

    def __post_init__(self) -> None:
        """Sum up the inputs every point depends on."""
        digest = hashlib.sha256(f"{self.slo}|{self.seed}|{WINDOW_S}|{WINDOW_REQUESTS}".encode())
        for load in (self.workload, self.window):
            digest.update(repr((load.clients, load.think_ns, load.hash_block_tokens)).encode())
            for column in (load.arrival_ns, load.prompt_tokens, load.output_tokens, *load.block_hashes):
                digest.update(np.ascontiguousarray(column).tobytes())
        self.stored_for = digest.hexdigest()

    def key(self, task: Task) -> str:
        """Everything a task's result depends on, the prices of its steps among it."""
        site = resolve(replace(task.deployment, max_num_seqs=task.seqs[0]))
        shapes = (BatchShape((), 1, 1, 1), BatchShape((), 32, 32000, 32), BatchShape(((512, 100), (7, 0)), 9, 900, 11))
        prices = [site.cost.step_ns(shape) for shape in shapes]
        said = f"{self.stored_for}|{task.name}|{prices}|{site.kv_blocks}|{site.engine}"
        return hashlib.sha256(said.encode()).hexdigest()

    def run(self, stage: str, tasks: Sequence[Task]) -> list[list[Point]]:
        """The points of each task."""
        by_key = {self.key(task): task for task in tasks}
        found = sweep(
            by_key,
            work,
            engine=self.engine,
            store=self.store,
            progress=lambda done, total: self.report(stage, done, total),
        )
        points = {key: [_point(by_key[key], plain) for plain in plains] for key, plains in found.items()}
        self.simulations += sum(not point.same_run for own in points.values() for point in own)
        return [points[self.key(task)] for task in tasks]

    def enumerate(self, bases: Sequence[Deployment], num_seqs: Sequence[int], chunks: Sequence[int]) -> None:
        """Consider every size and replica count of every base; keep as tasks what no bound excludes."""
        needed = demand(self.workload, self.slo)
        longest = int((self.workload.prompt_tokens + self.workload.output_tokens).max())
        pairs = [(seqs, chunk) for chunk in chunks for seqs in sorted(num_seqs, reverse=True) if seqs <= chunk]
        rates: dict[int, float] = {}
        for number, base in enumerate(bases):
            self.report("bounds", number, len(bases))
            most = self.max_gpus // base.devices
            reasons: dict[str, int] = {}
            open_tasks = 0
            by_chunk: dict[int, list[tuple[int, int]]] = {}
            for seqs, chunk in pairs:
                self.counts["considered"] += most
                try:
                    site = resolve(replace(base, max_num_seqs=seqs, max_num_batched_tokens=chunk))
                except InputError as error:
                    if error.field not in ("memory", "kv_blocks", *DEGREES):
                        raise
                    reason = error.why if error.field in DEGREES else f"HBM capacity: {error.why}"
                    self.counts["does not fit"] += most
                    reasons[reason] = reasons.get(reason, 0) + 1
                    continue
                if id(site.cost) not in rates:
                    rates[id(site.cost)] = context_rate(site.cost, max(s for s, _ in pairs), longest)
                found = bounds(site, self.workload, self.slo, needed, rates[id(site.cost)])
                if found.reason:
                    fits = not found.reason.startswith(("HBM", "context"))
                    self.counts["too slow even alone" if fits else "does not fit"] += most
                    reasons[found.reason] = reasons.get(found.reason, 0) + 1
                    continue
                least = min(found.replicas, most + 1)
                self.counts["too few replicas for the work"] += least - 1
                if least > most:
                    why = f"throughput: the work needs at least {found.replicas} replicas, {most} are allowed"
                    reasons[why] = reasons.get(why, 0) + 1
                    continue
                by_chunk.setdefault(chunk, []).append((seqs, least))
            for chunk, sizes in by_chunk.items():
                for replicas in range(1, most + 1):
                    seqs_here = tuple(seqs for seqs, least in sizes if least <= replicas)
                    if seqs_here:
                        option = replace(base, replicas=replicas, max_num_batched_tokens=chunk)
                        price = (base.price_usd_per_hour or 0.0) * option.devices
                        self.tasks.append((price, Task(option, seqs_here)))
                        open_tasks += 1
            if not open_tasks:
                reason = max(reasons, key=lambda said: reasons[said])
                self.rejected.append(_named(base) | {"reason": reason})
        self.tasks.sort(key=lambda pair: (round(pair[0], 9), pair[1].name))

    def refuse_if_nothing_fits(self, model: str, gpus: Sequence[str]) -> None:
        """A model that no group can hold is bad input, not an objective out of reach."""
        fitting = [
            row
            for row in self.rejected
            if not any(part in row["reason"] for part in ("HBM", "must divide", "context:", "has no experts"))
        ]
        if not self.tasks and not fitting and self.rejected:
            last = self.rejected[-1]
            where = f"{last['layout']} {last['gpu']}"
            raise InputError(model, "gpu", ",".join(gpus), f"does not fit anywhere; on {where}: {last['reason']}")

    def rounds(self) -> Iterator[tuple[list[float], list[Task]]]:
        """Tasks in order of price, whole prices together, at least `ROUND` at a time."""
        prices: list[float] = []
        tasks: list[Task] = []
        for price, level in itertools.groupby(self.tasks, key=lambda pair: round(pair[0], 9)):
            prices.append(price)
            tasks += [task for _, task in level]
            if len(tasks) >= ROUND:
                yield prices, tasks
                prices, tasks = [], []
        if tasks:
            yield prices, tasks

    def find(self) -> tuple[Point | None, Point | None, list[Point]]:
        """Simulate in order of price until two kinds kept the objective; count what became of the rest."""
        points: list[Point] = []
        chosen = runner_up = None
        tried = 0
        for number, (prices, tasks) in enumerate(self.rounds(), start=1):
            if chosen is not None and (runner_up is not None or prices[0] > FURTHER * chosen.usd_per_hour):
                break
            stage = f"round {number}, {prices[0]:.2f} to {prices[-1]:.2f} US$/h"
            for own in self.run(stage, tasks):
                points += own
            tried += len(tasks)
            chosen, runner_up = two_best([point for point in points if point.kept and point.level == "whole"])
        finals = final_points(points)
        self.counts["dearer than the answer"] += sum(len(task.seqs) for _, task in self.tasks[tried:])
        for point in finals:
            if point.same_run:
                self.counts["same run as another batch size"] += 1
            else:
                self.counts[ON_WHOLE if point.level == "whole" else WINDOW_ONLY] += 1
        return chosen, runner_up, finals


def _named(base: Deployment) -> dict[str, Any]:
    return {
        "gpu": str(base.device),
        "tensor_parallel": base.tensor_parallel,
        "layout": layout(base),
        "weight_dtype": base.weight_dtype,
        "kv_dtype": base.kv_dtype,
    }


def final_points(points: Sequence[Point]) -> list[Point]:
    """The last word on every option, in order of price; a run given up on the whole keeps the stretch's values to draw."""
    last: dict[Deployment, Point] = {}
    for point in points:
        before = last.get(point.deployment)
        if before is not None and not point.complete and before.complete:
            worst = max(before.ratio, point.ratio)
            point = replace(point, values=before.values, summary=before.summary, ratio=worst, drawn_level=before.level)
        last[point.deployment] = point
    return sorted(last.values(), key=lambda point: (*point.order, point.label))


def two_best(kept: Sequence[Point]) -> tuple[Point | None, Point | None]:
    """The cheapest, and the cheapest that differs in device, tensor parallelism or replicas."""
    ordered = sorted(kept, key=lambda point: point.order)
    chosen = ordered[0] if ordered else None
    return chosen, next((point for point in ordered if chosen is not None and point.kind != chosen.kind), None)
