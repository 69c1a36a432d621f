"""The cheapest deployment that keeps an objective: bounds first, then simulation with growing fidelity.

1. Bounds from the cost model drop device groups that cannot hold the model, or whose lone request is already too slow, and
   give each remaining group the replica count below which the work does not fit into the time.
2. On the busiest stretch of the workload every group (device, tensor parallelism) searches its smallest number of replicas,
   first at one batch and chunk size, then at others wherever that could be cheaper than the best so far.
3. Options are then tried on the whole workload in order of price, those that only just failed on the busiest stretch
   included, until two kept the objective: the answer and the runner-up.

Every simulation is a pure function of its inputs, and rounds are formed without looking at the clock, so the answer does not
depend on the number of worker processes. Units: seconds, tokens, US dollars per hour.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving.answer import explain, launch_command
from llmlab.simulator.serving.bounds import bounds
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.simulate import SimulationResult, simulate
from llmlab.simulator.serving.slo import Slo, Target
from llmlab.simulator.workload.workload import Workload

WINDOW_S, WINDOW_REQUESTS = 120.0, 2000
"""The busiest stretch that the search simulates: this long, shorter (down to a quarter) where it holds more requests."""

MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 2048
"""Where the search starts in every group."""

OTHER_NUM_SEQS = (32, 64, 128, 512)
OTHER_BATCHED_TOKENS = (512, 1024, 4096, 8192)
"""What it tries then. Batch sizes that were never reached change nothing and are left out."""

WHOLE_RUNS = 12
"""At most this many simulations of the whole workload."""

HOPELESS = 5.0
"""A run on the busiest stretch is stopped once it must miss a limit by this factor, and not tried on the whole workload."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Point:
    """One simulated option.

    Attributes:
        level: "window" or "whole".
        complete: the run went to its end; otherwise its values are those at the moment it was given up.
        ratio: the worst of value / limit over the objective's clauses; at most 1 where it is kept.
        values: every clause's measured value in seconds.
        steps: some of its steps with their nanoseconds, to tell what binds.
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

    @property
    def order(self) -> tuple[float, float, int, int]:
        """Cheapest first, then the largest margin, then the smallest batch."""
        deployment = self.deployment
        return self.usd_per_hour, self.ratio, deployment.max_num_seqs or 0, deployment.max_num_batched_tokens or 0

    @property
    def group(self) -> tuple[str, int]:
        """Device and tensor parallelism."""
        return str(self.deployment.device), self.deployment.tensor_parallel

    @property
    def label(self) -> str:
        """Short name, as in `2 x TP4 H100`."""
        return f"{self.deployment.replicas} x TP{self.deployment.tensor_parallel} {self.deployment.device}"

    def row(self) -> dict[str, Any]:
        """One line of a table."""
        deployment, summary = self.deployment, self.summary
        return {
            "gpu": str(deployment.device),
            "tensor_parallel": deployment.tensor_parallel,
            "replicas": deployment.replicas,
            "gpus": deployment.devices,
            "max_num_seqs": deployment.max_num_seqs,
            "max_num_batched_tokens": deployment.max_num_batched_tokens,
            "usd_per_hour": round(self.usd_per_hour, 6),
            "usd_per_million_output_tokens": summary["usd_per_million_output_tokens"],
            **{f"{name}_s": value for name, value in self.values.items()},
            "utilization": summary["utilization"],
            "kv_peak_fraction": summary["kv_peak_fraction"],
            "kept": self.kept,
            "simulated": self.level if self.complete else f"{self.level}, given up",
        }


@dataclass(frozen=True)
class Plan:
    """The answer and how it was found.

    Attributes:
        chosen: cheapest option that kept the objective on the whole workload; None where there is none.
        runner_up: the next cheapest of another kind.
        points: every option simulated to its end, in order of price.
        rejected: groups dropped by a bound, with the reason.
        binds: what keeps anything cheaper from being enough.
        robust: whether the answer still keeps the objective when every step takes as long as the calibration allows,
            `stretch` times as long.
        safe: the cheapest option found that keeps it then; its figures are those of the slow run.
    """

    model: str
    workload: str
    slo: Slo
    max_gpus: int
    chosen: Point | None
    runner_up: Point | None
    points: tuple[Point, ...]
    rejected: tuple[Mapping[str, Any], ...]
    prices: Mapping[str, Mapping[str, Any]]
    binds: str
    robust: bool | None
    safe: Point | None
    stretch: float
    command: str
    simulations: int
    wall_s: float
    notes: tuple[str, ...] = ()

    def best_rows(self) -> list[dict[str, Any]]:
        """The best option of every group, the rejected groups last."""
        rows = []
        checked = {point.deployment for point in self.points if point.level == "whole"}
        final = [point for point in self.points if point.level == "whole" or point.deployment not in checked]
        for group in dict.fromkeys(point.group for point in final):
            own = [point for point in final if point.group == group]
            kept = [point for point in own if point.kept]
            best = self.chosen if self.chosen and self.chosen.group == group else None
            if best is None and self.runner_up and self.runner_up.group == group:
                best = self.runner_up
            if best is None:
                best = min(kept, key=lambda point: point.order) if kept else min(own, key=lambda point: point.ratio)
            mark = "chosen" if best is self.chosen else "runner-up" if best is self.runner_up else ""
            rows.append(best.row() | {"mark": mark})
        return sorted(rows, key=lambda row: (not row["kept"], row["usd_per_hour"]))

    def fronts(self) -> list[dict[str, Any]]:
        """Per clause of the objective: cost against latency, ready to draw."""
        level = "window" if any(point.level == "window" for point in self.points) else "whole"
        window = [point for point in self.points if point.level == level and point.complete]
        found = []
        points: list[dict[str, Any]]
        for target in self.slo.targets:
            name = f"{target.metric}_{target.statistic}"
            points = [
                {
                    "x": point.usd_per_hour,
                    "y": value,
                    "label": point.label,
                    "group": f"{point.deployment.device} TP{point.deployment.tensor_parallel}",
                    "keeps": point.kept,
                    "chosen": self.chosen is not None and point.deployment == self.chosen.deployment,
                    "front": False,
                }
                for point in window
                if (value := point.values[name]) is not None
            ]
            lowest = math.inf
            for drawn in sorted(points, key=lambda drawn: (drawn["x"], drawn["y"])):
                drawn["front"] = drawn["y"] < lowest  # nothing is both cheaper and faster
                lowest = min(lowest, drawn["y"])
            found.append(
                {
                    "metric": name,
                    "title": f"{name} of every option on the busiest stretch",
                    "x": "US dollars per hour",
                    "y": f"{name}, seconds",
                    "limit": target.seconds,
                    "points": sorted(points, key=lambda drawn: (drawn["x"], drawn["y"])),
                }
            )
        return found

    def sentences(self) -> list[str]:
        """The answer in words, one thought per line."""
        if self.chosen is None:
            return [f"No deployment of at most {self.max_gpus} devices keeps {self.slo}.", f"What binds: {self.binds}."]
        chosen = self.chosen
        said = [
            f"Cheapest for {self.slo}: {chosen.label}, {chosen.deployment.devices} devices, {chosen.usd_per_hour:.2f} US$/h."
        ]
        if self.runner_up is not None:
            said.append(f"Runner-up: {self.runner_up.label}, {self.runner_up.usd_per_hour:.2f} US$/h.")
        said.append(f"What binds: {self.binds}.")
        holds = "still keeps the objective" if self.robust else "no longer keeps the objective"
        said.append(f"At the slow end of the calibration (every step x{self.stretch:.2f}) it {holds}{self._instead()}.")
        said += [f"Note: {note}." for note in self.notes]
        said += [
            f"Price of {gpu}: {price['usd_per_hour']:.2f} US$/h ({price['source']})." for gpu, price in self.prices.items()
        ]
        said.append(f"Start each of the {chosen.deployment.replicas} replicas behind a {chosen.deployment.router} router with:")
        return [*said, self.command]

    def _instead(self) -> str:
        if self.robust:
            return ""
        if self.safe is None:
            return "; nothing that was tried does"
        return f"; {self.safe.label} at {self.safe.usd_per_hour:.2f} US$/h does"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of everything."""
        return {
            "model": self.model,
            "workload": self.workload,
            "slo": str(self.slo),
            "max_gpus": self.max_gpus,
            "chosen": self.chosen.row() if self.chosen else None,
            "runner_up": self.runner_up.row() if self.runner_up else None,
            "binds": self.binds,
            "robust": self.robust,
            "safe": self.safe.row() if self.safe else None,
            "stretch": self.stretch,
            "command": self.command,
            "rows": self.best_rows(),
            "points": [point.row() for point in self.points],
            "rejected": [dict(row) for row in self.rejected],
            "fronts": self.fronts(),
            "prices": {name: dict(price) for name, price in self.prices.items()},
            "simulations": self.simulations,
            "notes": list(self.notes),
            "wall_s": self.wall_s,
        }


def busiest(workload: Workload) -> Workload:
    """The stretch the search simulates; a closed loop has none and is simulated whole."""
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


@dataclass(frozen=True)
class _Task:
    """What one worker does: find the smallest replica count of a configuration from `low` to `high`.

    Attributes:
        give_up: stop a run when it must miss a limit by this factor.
        stretch: every step takes this many times as long.
        falling: start at `high`, and stop there if that fails; otherwise at `low`, doubling.
    """

    deployment: Deployment
    level: str
    low: int
    high: int
    give_up: float = HOPELESS
    stretch: float = 1.0
    falling: bool = False


@dataclass
class _Worker:
    """State of a worker process: the workload at both levels."""

    loads: dict[str, Workload] = field(default_factory=dict)
    slo: Slo = field(default_factory=lambda: Slo(()))
    seed: int = 0


_worker = _Worker()


def _start(loads: dict[str, Workload], slo: Slo, seed: int) -> None:
    _worker.loads, _worker.slo, _worker.seed = loads, slo, seed


def _one(task: _Task, replicas: int) -> Point:
    result = simulate(
        replace(task.deployment, replicas=replicas),
        _worker.loads[task.level],
        seed=_worker.seed,
        give_up=_worker.slo.relaxed(task.give_up),
        stretch=task.stretch,
    )
    return judge(result, _worker.slo, task.level)


def _work(task: _Task) -> list[Point]:
    """Every point tried until the smallest replica count that keeps the objective is known; more are taken to be no worse."""
    points: dict[int, Point] = {}

    def kept(replicas: int) -> bool:
        points[replicas] = _one(task, replicas)
        return points[replicas].kept

    failed, step, good = task.low - 1, 1, task.high if task.falling else task.low
    while not kept(good):
        if good >= task.high:
            return list(points.values())
        failed, good, step = good, min(good + step, task.high), 2 * step
    while good - failed > 1:
        middle = (good + failed) // 2
        if kept(middle):
            good = middle
        else:
            failed = middle
    return list(points.values())


@contextmanager
def _mapper(
    workers: int, loads: dict[str, Workload], slo: Slo, seed: int
) -> Iterator[Callable[[Sequence[_Task]], Iterator[list[Point]]]]:
    if workers <= 1:
        _start(loads, slo, seed)
        yield lambda tasks: map(_work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(loads, slo, seed)) as pool:
        yield lambda tasks: pool.map(_work, tasks)


def _prices(gpus: Sequence[str], max_gpus: int, given: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Price and source of every device asked for, each once."""
    if not gpus:
        raise InputError("--gpu", "gpu", "", "names no device")
    if max_gpus < 1:
        raise InputError("--max-gpus", "max_gpus", max_gpus, "must be at least 1")
    for name, price in given.items():
        if name not in gpus:
            raise InputError("--price", "gpu", name, f"is not among the devices asked for ({', '.join(gpus)})")
        if not 0 < price < math.inf:
            raise InputError("--price", name, price, "must be positive")
    known = {}
    for gpu in dict.fromkeys(gpus):
        device = load_device(gpu).device
        known[gpu] = {
            "usd_per_hour": given.get(gpu, device.price_usd_per_hour),
            "source": "given" if gpu in given else device.price_source,
        }
        if not known[gpu]["usd_per_hour"]:
            raise InputError("--price", gpu, None, "has no default price: give one")
    return known


Run = Callable[[str, Sequence[_Task]], list[list[Point]]]


def _counted(mapped: Callable[[Sequence[_Task]], Iterator[list[Point]]], report: Progress) -> Run:
    """Run tasks and report how many are done."""

    def run(stage: str, tasks: Sequence[_Task]) -> list[list[Point]]:
        found = []
        report(stage, 0, len(tasks))
        for done, result in enumerate(mapped(tasks), start=1):
            found.append(result)
            report(stage, done, len(tasks))
        return found

    return run


@dataclass
class _Group:
    """Deployments that differ in replicas and sizes only.

    Attributes:
        base: one replica at the starting sizes.
        least, most: replica counts worth simulating.
        needed: the smallest count that kept the objective on the busiest stretch, None if none did.
        running: the most requests a step of that run held.
    """

    base: Deployment
    least: int
    most: int
    needed: int | None = None
    running: int = 0

    @property
    def usd_per_hour(self) -> float:
        """Of one replica."""
        return (self.base.price_usd_per_hour or 0.0) * self.base.tensor_parallel


@dataclass
class _Search:
    """The state of a search; its methods are the stages, in order."""

    slo: Slo
    workload: Workload
    window: Workload
    max_gpus: int
    run: Run = field(default=lambda stage, tasks: [])
    groups: list[_Group] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    simulations: int = 0

    def simulate(self, stage: str, tasks: Sequence[_Task]) -> list[list[Point]]:
        """Run tasks, keep every point."""
        found = self.run(stage, tasks)
        for points in found:
            self.points += points
            self.simulations += len(points)
        return found

    def consider(self, model: str, gpu: str, price: float, options: Mapping[str, Any]) -> None:
        """Add the groups of one device that no bound rules out: tensor parallelism 1, 2, 4, ... within a node."""
        degree = 1
        while degree <= min(load_device(gpu).device.devices_per_node, self.max_gpus):
            base = Deployment(model, gpu, degree, price_usd_per_hour=price, **options)
            try:
                site = resolve(base)
                reason = bounds(site, self.workload, self.slo).reason
            except InputError as error:
                if error.field not in ("memory", "tensor_parallel", "kv_blocks"):
                    raise
                reason = error.why if error.field == "tensor_parallel" else f"HBM capacity: {error.why}"
            most = self.max_gpus // degree
            if reason:
                self.rejected.append({"gpu": gpu, "tensor_parallel": degree, "reason": reason})
            else:
                least = bounds(site, self.window, self.slo).replicas
                self.groups.append(_Group(base, least=min(least, most), most=most))
            degree *= 2

    def refuse_if_nothing_fits(self, model: str, gpus: Sequence[str]) -> None:
        """A model that no group can hold is bad input, not an objective out of reach."""
        if not self.groups and all("HBM capacity" in row["reason"] or "must divide" in row["reason"] for row in self.rejected):
            last = self.rejected[-1]
            where = f"{last['tensor_parallel']} x {last['gpu']}"
            raise InputError(model, "gpu", ",".join(gpus), f"does not fit anywhere; on {where}: {last['reason']}")

    def size(self) -> None:
        """Find the smallest replica count of every group at the starting sizes."""
        tasks = [_Task(group.base, "window", low=group.least, high=group.most) for group in self.groups]
        for group, found in zip(self.groups, self.simulate("sizing", tasks)):
            kept = [point for point in found if point.kept]
            best = min(kept or found, key=lambda point: point.deployment.replicas)
            group.needed = best.deployment.replicas if kept else None
            group.running = best.summary["most_running"]

    def vary(self) -> None:
        """Try other batch and chunk sizes: with as many replicas as would still be cheaper, then at the cheapest price."""
        for stage, cheaper in (("cheaper at other sizes", True), ("other sizes at the same price", False)):
            price = min((point.usd_per_hour for point in self.points if point.kept), default=math.inf)
            tasks = []
            for group in self.groups:
                most = group.most if price == math.inf else min(group.most, math.floor(price / group.usd_per_hour + 1e-9))
                ties = math.isclose(price, most * group.usd_per_hour)
                high = most - 1 if cheaper and ties else most
                if high >= group.least and (cheaper or ties):
                    low = group.least if cheaper else high
                    tasks += [_Task(other, "window", low=low, high=high, falling=True) for other in self.sizes(group)]
            self.simulate(stage, tasks)

    def sizes(self, group: _Group) -> list[Deployment]:
        """The group at other sizes that would change something and leave room for the cache."""
        pairs = [(MAX_NUM_SEQS, batched) for batched in OTHER_BATCHED_TOKENS]
        pairs += [(seqs, MAX_NUM_BATCHED_TOKENS) for seqs in OTHER_NUM_SEQS if min(seqs, MAX_NUM_SEQS - 1) < group.running]
        found = []
        for seqs, batched in pairs:
            other = replace(group.base, max_num_seqs=seqs, max_num_batched_tokens=batched)
            try:
                resolve(other)
            except InputError:
                continue  # larger steps leave no room for the cache
            found.append(other)
        return found

    def verify(self) -> tuple[Point | None, Point | None]:
        """Try options on the whole workload by price until two kept the objective: the answer and the runner-up."""
        if len(self.window) == len(self.workload):
            return _two_best([replace(point, level="whole") for point in self.points if point.kept])
        best: dict[tuple[tuple[str, int], int], Point] = {}
        for point in sorted(self.points, key=lambda point: (point.ratio, point.order)):
            best.setdefault((point.group, point.deployment.replicas), point)
        queue = sorted((point for point in best.values() if point.ratio <= HOPELESS), key=lambda point: point.order)
        kept: list[Point] = []
        for start in range(0, WHOLE_RUNS, 2):  # always two at a time, so that the number of workers changes nothing
            now = queue[start : start + 2]
            if not now or len(kept) >= 2:
                break
            tasks = [_Task(p.deployment, "whole", p.deployment.replicas, p.deployment.replicas, give_up=1.0) for p in now]
            for found in self.simulate(f"whole workload, round {start // 2 + 1}", tasks):
                kept += [point for point in found if point.kept]
        return _two_best(kept)

    def stress(self, chosen: Point | None, seed: int) -> tuple[float, bool | None, Point | None]:
        """Run the answer with every step as long as the calibration's residuals allow; where it fails, find one that holds.

        The search goes up in price on the busiest stretch and confirms the first that holds on the whole workload.
        """
        if chosen is None:
            return 1.0, None, None
        stretch = simulate(chosen.deployment, self.window, seed=seed).step_interval()[1]

        def slowly(stage: str, points: Sequence[Point], level: str) -> list[Point]:
            tasks = [
                _Task(p.deployment, level, p.deployment.replicas, p.deployment.replicas, give_up=1.0, stretch=stretch)
                for p in points
            ]
            self.simulations += len(tasks)
            return [found[0] for found in self.run(stage, tasks)]

        answer = slowly("slow end of the calibration", [chosen], "whole")[0]
        if answer.kept:
            return stretch, True, chosen
        best: dict[tuple[tuple[str, int], int], Point] = {}
        for point in sorted(self.points, key=lambda point: (point.ratio, point.order)):
            if point.kept and point.usd_per_hour >= chosen.usd_per_hour and point.deployment != chosen.deployment:
                best.setdefault((point.group, point.deployment.replicas), point)
        queue = sorted(best.values(), key=lambda point: point.order)
        for start in range(0, WHOLE_RUNS, 2):
            tried = slowly("what holds there", queue[start : start + 2], "window")
            for point in sorted((point for point in tried if point.kept), key=lambda point: point.order):
                if slowly("what holds there, whole workload", [point], "whole")[0].kept:
                    return stretch, False, point
        return stretch, False, None


def _two_best(kept: Sequence[Point]) -> tuple[Point | None, Point | None]:
    """The cheapest, and the cheapest that differs in device, tensor parallelism or replicas."""
    ordered = sorted(kept, key=lambda point: point.order)
    chosen = ordered[0] if ordered else None
    others = (p for p in ordered if chosen and (p.group, p.deployment.replicas) != (chosen.group, chosen.deployment.replicas))
    return chosen, next(others, None)


def plan(
    model: str,
    workload: Workload,
    slo: Slo,
    gpus: Sequence[str],
    *,
    max_gpus: int = 64,
    prices: Mapping[str, float] | None = None,
    engine: str = "vllm",
    weight_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    gpu_memory_utilization: float = 0.9,
    prefix_caching: bool = True,
    router: str = "least_outstanding",
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Plan:
    """Search the cheapest deployment that keeps `slo` on `workload`.

    Args:
        gpus: devices to choose from; one deployment uses one kind.
        max_gpus: largest number of devices of a deployment.
        prices: US dollars per device and hour by name as given in `gpus`; the devices' dated defaults otherwise.
        workers: processes; 1 stays in this one.
        progress: called with (stage, done, total).

    Raises:
        InputError: an unknown name, a price that is negative or for a device not asked for, or a model that fits nowhere.
    """
    started = time.perf_counter()
    report = progress or (lambda name, done, total: None)
    known_prices = _prices(gpus, max_gpus, prices or {})
    options = {
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "gpu_memory_utilization": gpu_memory_utilization,
        "prefix_caching": prefix_caching,
        "weight_dtype": weight_dtype,
        "kv_dtype": kv_dtype,
        "engine": engine,
        "router": router,
    }
    window = busiest(workload)
    search = _Search(slo, workload, window, max_gpus)
    for gpu, price in known_prices.items():
        search.consider(model, gpu, price["usd_per_hour"], options)
    search.refuse_if_nothing_fits(model, gpus)
    with _mapper(workers, {"window": window, "whole": workload}, slo, seed) as mapped:
        search.run = _counted(mapped, report)
        search.size()
        search.vary()
        chosen, runner_up = search.verify()
        stretch, robust, safe = search.stress(chosen, seed)
    points = sorted(search.points, key=lambda point: (*point.order, point.label, point.level))
    return Plan(
        model=load_model(model).name,
        workload=workload.name,
        slo=slo,
        max_gpus=max_gpus,
        chosen=chosen,
        runner_up=runner_up,
        points=tuple(points),
        rejected=tuple(search.rejected),
        prices=known_prices,
        binds=explain(chosen, points, search.rejected),
        robust=robust,
        safe=safe,
        stretch=stretch,
        command=launch_command(chosen, workload) if chosen else "",
        simulations=search.simulations,
        wall_s=time.perf_counter() - started,
        notes=tuple(dict.fromkeys(note for gpu in known_prices for note in load_device(gpu).notes)),
    )


def read_prices(text: str | None) -> dict[str, float]:
    """Read `h100=2.5,h200=3.6`.

    Raises:
        InputError: a clause without a number, or a device named twice.

    >>> read_prices("h100=2.5, h200=3.6")
    {'h100': 2.5, 'h200': 3.6}
    """
    prices: dict[str, float] = {}
    for clause in text.split(",") if text is not None else ():
        name, equals, amount = (part.strip() for part in clause.partition("="))
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if not equals or not name or math.isnan(value):
            raise InputError("--price", "clause", clause.strip(), "must read GPU=DOLLARS, as in h100=2.5")
        if name in prices:
            raise InputError("--price", "gpu", name, "is given twice")
        prices[name] = value
    return prices
