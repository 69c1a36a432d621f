"""The cheapest deployment that keeps an objective: bounds first, then simulation with growing fidelity.

1. Bounds from the cost model drop device groups that cannot hold the model, or whose lone request is already too slow, and
   give each remaining group the replica count below which the work does not fit into the time.
2. On the busiest stretch of the workload every group (device, tensor parallelism) searches its smallest number of replicas,
   for each of several batch and chunk sizes.
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

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving.deployment import Deployment, Site, resolve
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
            "usd_per_hour": self.usd_per_hour,
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
        robust: whether the answer still keeps the objective when every step takes as long as the calibration allows.
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
        said.append(f"At the slow end of the calibration (every step x{self.stretch:.2f}) it {holds}.")
        said += [f"Note: {note}." for note in self.notes]
        said += [
            f"Price of {gpu}: {price['usd_per_hour']:.2f} US$/h ({price['source']})." for gpu, price in self.prices.items()
        ]
        said.append(f"Start each of the {chosen.deployment.replicas} replicas behind a {chosen.deployment.router} router with:")
        return [*said, self.command]

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
    summary = result.summary(slo)
    del summary["wall_s"]  # the only field that differs between equal runs
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
    )


@dataclass(frozen=True)
class Bounds:
    """What the cost model alone says about a device group.

    Attributes:
        reason: why no number of replicas can keep the objective; empty where one might.
        replicas: no fewer can do the work of the busiest stretch in time.
    """

    reason: str = ""
    replicas: int = 1


def bounds(site: Site, window: Workload, slo: Slo) -> Bounds:
    """Lower bounds that hold for any schedule.

    A token after the first takes at least a step of one decode over its shortest context, a first token at least the
    prefill of its own prompt (one token of it, where prefixes may be cached) in the largest allowed steps. Work: a step of n
    tokens takes at least n times the smallest time per token of any step, whatever else is in it.
    """
    cost, largest = site.cost, site.max_num_batched_tokens

    def prefill_s(tokens: int) -> float:
        whole, rest = divmod(int(tokens), largest)
        steps = [BatchShape(((largest, i * largest),), 0, 0, 0) for i in range(whole)]
        if rest > 1:
            steps.append(BatchShape(((rest, whole * largest),), 0, 0, 1))
        elif rest:
            steps.append(BatchShape((), 1, whole * largest + 1, 1))
        return sum(cost.step_ns(step) for step in steps) / 1e9

    longest = int((window.prompt_tokens + window.output_tokens).max())
    if site.longest_tokens is not None and longest > site.longest_tokens:
        return Bounds(f"requests of {longest} tokens pass the model's context of {site.longest_tokens}")
    blocks = -(-(longest - 1) // site.deployment.block_tokens)
    if blocks > site.kv_blocks:
        return Bounds(f"HBM capacity: the longest request needs {blocks} KV blocks, {site.kv_blocks} fit beside the weights")
    decode_s = cost.step_ns(BatchShape((), 1, 1, 1)) / 1e9
    prompts = np.sort(window.prompt_tokens)
    for target in slo.targets:
        fraction = target.quantile
        if target.metric in ("tpot", "itl") and decode_s > target.seconds:
            return Bounds(f"a lone request takes {decode_s * 1e3:.1f} ms per token ({cost.binding(BatchShape((), 1, 1, 1))})")
        if target.metric == "ttft" and fraction is not None and not window.block_hashes:
            prompt = int(prompts[math.floor((len(prompts) - 1) * fraction)])
            least = prefill_s(prompt) + site.engine.host_request_s
            if least > target.seconds:
                return Bounds(f"a lone prompt of {prompt} tokens takes {least:.2f} s to its first token (compute)")
    tokens = float((window.output_tokens - 1).sum()) + (
        len(window) if window.block_hashes else float(window.prompt_tokens.sum())
    )
    sizes = np.unique(np.minimum(2 ** np.arange(0, 40), largest))
    per_token_s = min(cost.step_ns(BatchShape((), int(n), int(n), int(n))) / 1e9 / n for n in sizes)
    # e2e is not bounded by the objective in general, so only a workload that lasts long tells how much time there is
    allowed_s = window.span_s + max(60.0, slo.limit("e2e") if math.isfinite(slo.limit("e2e")) else 60.0)
    return Bounds(replicas=max(1, math.ceil(tokens * per_token_s / allowed_s)) if not window.clients else 1)


@dataclass(frozen=True)
class _Task:
    """What one worker does: find the smallest replica count of a configuration, or run one option once."""

    deployment: Deployment
    level: str
    low: int
    high: int
    give_up: float = HOPELESS
    stretch: float = 1.0


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
    """Every point tried from `low` on: doubled until one keeps the objective, then halved in between."""
    points: dict[int, Point] = {}

    def kept(replicas: int) -> bool:
        points[replicas] = _one(task, replicas)
        return points[replicas].kept

    failed, step, replicas = task.low - 1, 1, task.low
    while not kept(replicas):
        failed = replicas
        if replicas >= task.high:
            return list(points.values())
        replicas, step = min(replicas + step, task.high), 2 * step
    good = replicas
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
    if not gpus:
        raise InputError("--gpu", "gpu", "", "names no device")
    if max_gpus < 1:
        raise InputError("--max-gpus", "max_gpus", max_gpus, "must be at least 1")
    given = dict(prices or {})
    for name, price in given.items():
        if name not in gpus:
            raise InputError("--price", "gpu", name, f"is not among the devices asked for ({', '.join(gpus)})")
        if not 0 < price < math.inf:
            raise InputError("--price", name, price, "must be positive")
    description = load_model(model)
    window = busiest(workload)
    same = len(window) == len(workload)

    candidates: list[tuple[Deployment, Bounds]] = []
    rejected: list[dict[str, Any]] = []
    known_prices: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for gpu in dict.fromkeys(gpus):
        profile = load_device(gpu)
        device = profile.device
        notes += [note for note in profile.notes if note not in notes]
        known_prices[gpu] = {
            "usd_per_hour": given.get(gpu, device.price_usd_per_hour),
            "source": "given" if gpu in given else device.price_source,
        }
        if not known_prices[gpu]["usd_per_hour"]:
            raise InputError("--price", gpu, None, "has no default price: give one")
        degree = 1
        while degree <= min(device.devices_per_node, max_gpus):
            base = Deployment(
                model,
                gpu,
                degree,
                max_num_seqs=MAX_NUM_SEQS,
                max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
                gpu_memory_utilization=gpu_memory_utilization,
                prefix_caching=prefix_caching,
                weight_dtype=weight_dtype,
                kv_dtype=kv_dtype,
                engine=engine,
                router=router,
                price_usd_per_hour=known_prices[gpu]["usd_per_hour"],
            )
            try:
                reason = bounds(resolve(base), workload, slo).reason
            except InputError as error:
                if error.field not in ("memory", "tensor_parallel", "kv_blocks"):
                    raise
                reason = f"HBM capacity: {error.why}" if error.field != "tensor_parallel" else error.why
            if reason:
                rejected.append({"gpu": gpu, "tensor_parallel": degree, "reason": reason})
            else:
                candidates.append((base, bounds(resolve(base), window, slo)))
            degree *= 2
    if not candidates and all("fit" in row["reason"] or "must divide" in row["reason"] for row in rejected):
        best = rejected[-1]
        raise InputError(
            description.name,
            "gpu",
            ",".join(gpus),
            f"does not fit anywhere; on {best['tensor_parallel']} x {best['gpu']} {best['reason']}",
        )

    points: list[Point] = []
    simulations = 0
    with _mapper(workers, {"window": window, "whole": workload}, slo, seed) as mapped:

        def run(stage: str, tasks: Sequence[_Task]) -> list[list[Point]]:
            nonlocal simulations
            found = []
            report(stage, 0, len(tasks))
            for done, result in enumerate(mapped(tasks), start=1):
                found.append(result)
                simulations += len(result)
                report(stage, done, len(tasks))
            return found

        # the smallest replica count of each group at the default sizes
        tasks = [
            _Task(
                base, "window", low=min(bound.replicas, max_gpus // base.tensor_parallel), high=max_gpus // base.tensor_parallel
            )
            for base, bound in candidates
        ]
        smallest: dict[Deployment, int | None] = {}
        most_running: dict[Deployment, int] = {}
        for task, found in zip(tasks, run("sizing", tasks)):
            points += found
            kept = [point.deployment.replicas for point in found if point.kept]
            smallest[task.deployment] = min(kept) if kept else None
            last = max(found, key=lambda point: (point.kept, -point.deployment.replicas))
            most_running[task.deployment] = last.summary["most_running"]

        # other sizes: can they do with less, or keep a larger margin?
        costs = [replicas * base.tensor_parallel * base.price_usd_per_hour for base, replicas in smallest.items() if replicas]  # type: ignore[operator]
        worth = min(costs, default=math.inf)
        tasks = []
        for base, bound in candidates:
            most = smallest[base] or max_gpus // base.tensor_parallel
            least = max(1, bound.replicas, most - 1)
            if base.price_usd_per_hour * base.tensor_parallel * least > worth:  # type: ignore[operator]
                continue
            sizes = [(MAX_NUM_SEQS, batched) for batched in OTHER_BATCHED_TOKENS]
            for seqs in OTHER_NUM_SEQS:
                reached = most_running[base]
                if seqs < reached if seqs < MAX_NUM_SEQS else reached >= MAX_NUM_SEQS:
                    sizes.append((seqs, MAX_NUM_BATCHED_TOKENS))
            for seqs, batched in sizes:
                other = replace(base, max_num_seqs=seqs, max_num_batched_tokens=batched)
                try:
                    resolve(other)
                except InputError:
                    continue  # larger steps leave no room for the cache
                tasks.append(_Task(other, "window", low=least, high=most))
        for found in run("batch and chunk sizes", tasks):
            points += found

        # the whole workload, in order of price
        if same:
            verified = [replace(point, level="whole") for point in points if point.kept]
            chosen, runner_up = _two_best(verified)
        else:
            chosen, runner_up, whole = _verify(points, run)
            points += whole
        stretch, robust = 1.0, None
        if chosen is not None:
            sample = simulate(chosen.deployment, window, seed=seed)
            stretch = sample.step_interval()[1]
            deployment = chosen.deployment
            task = _Task(deployment, "whole", deployment.replicas, deployment.replicas, give_up=1.0, stretch=stretch)
            robust = run("slow end of the calibration", [task])[0][0].kept
    return Plan(
        model=description.name,
        workload=workload.name,
        slo=slo,
        max_gpus=max_gpus,
        chosen=chosen,
        runner_up=runner_up,
        points=tuple(sorted(points, key=lambda point: (*point.order, point.label, point.level))),
        rejected=tuple(rejected),
        prices=known_prices,
        binds=explain(chosen, points, rejected),
        robust=robust,
        stretch=stretch,
        command=launch_command(chosen, workload) if chosen else "",
        simulations=simulations,
        wall_s=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _two_best(kept: Sequence[Point]) -> tuple[Point | None, Point | None]:
    """The cheapest, and the cheapest that differs in device, tensor parallelism or replicas."""
    ordered = sorted(kept, key=lambda point: point.order)
    chosen = ordered[0] if ordered else None
    others = (p for p in ordered if chosen and (p.group, p.deployment.replicas) != (chosen.group, chosen.deployment.replicas))
    return chosen, next(others, None)


def _verify(
    points: Sequence[Point], run: Callable[[str, Sequence[_Task]], list[list[Point]]]
) -> tuple[Point | None, Point | None, list[Point]]:
    """Try options on the whole workload by price until two kept the objective; return them and all that were tried."""
    best: dict[tuple[tuple[str, int], int], Point] = {}
    for point in sorted(points, key=lambda point: (point.ratio, point.order)):
        best.setdefault((point.group, point.deployment.replicas), point)
    queue = sorted((point for point in best.values() if point.ratio <= HOPELESS), key=lambda point: point.order)
    kept: list[Point] = []
    tried: list[Point] = []
    while queue and len(kept) < 2 and len(tried) < WHOLE_RUNS:
        now, queue = queue[:2], queue[2:]  # always two, so that the answer does not depend on the number of workers
        tasks = [
            _Task(point.deployment, "whole", point.deployment.replicas, point.deployment.replicas, give_up=1.0) for point in now
        ]
        for found in run(f"whole workload, round {len(tried) // 2 + 1}", tasks):
            tried += found
            kept += [point for point in found if point.kept]
    chosen, runner_up = _two_best(kept)
    return chosen, runner_up, tried


def explain(chosen: Point | None, points: Sequence[Point], rejected: Sequence[Mapping[str, Any]]) -> str:
    """Say what keeps anything cheaper from being enough, from the next smaller option that was simulated."""
    if chosen is None:
        if not points:
            return "; ".join(f"{row['gpu']} TP{row['tensor_parallel']}: {row['reason']}" for row in rejected)
        nearest = min(points, key=lambda point: point.ratio)
        return f"nothing within the limit keeps the objective; nearest is {nearest.label}: {_cause(nearest)}"
    said = []
    smaller = [point for point in points if point.usd_per_hour < chosen.usd_per_hour and not point.kept]
    own = [point for point in smaller if point.group == chosen.group]
    if own or smaller:
        below = min(own or smaller, key=lambda point: (-point.usd_per_hour, point.ratio))
        said.append(f"the next cheaper option, {below.label} at {below.usd_per_hour:.2f} US$/h, fails: {_cause(below)}")
    lower = [row for row in rejected if row["gpu"] == chosen.group[0] and row["tensor_parallel"] < chosen.group[1]]
    if lower:
        said.append(f"TP{lower[-1]['tensor_parallel']} of {lower[-1]['gpu']} is ruled out by {lower[-1]['reason']}")
    if not said:
        said.append("nothing cheaper was possible: one replica of the smallest group is enough")
    steps = ", ".join(f"{name} {share:.0%}" for name, share in chosen.summary["bound_by"].items() if share >= 0.005)
    said.append(f"busy time of the chosen option is bound by {steps}")
    return "; ".join(said)


def _cause(point: Point) -> str:
    """Which resource makes an option break its objective."""
    summary = point.summary
    bound = next(iter(summary["bound_by"]), "compute")
    resource = {"compute": "compute", "HBM bandwidth": "HBM bandwidth", "network": "network"}.get(bound, bound)
    broken = "; ".join(point.broken) or "the objective"
    queue, ttft = summary["queue_s"]["p99"], summary["ttft_s"]["p99"]
    full = (summary["kv_peak_fraction"] or 0) > 0.97
    if full or summary["preemptions"]:
        return f"{broken}, HBM capacity: the KV cache is full ({summary['preemptions']} preemptions)"
    if queue is not None and ttft and queue > 0.5 * ttft and any(clause.startswith("ttft") for clause in point.broken):
        return f"{broken}, queueing behind {resource} (utilization {summary['utilization']:.0%})"
    return f"{broken}, {resource}"


def launch_command(point: Point, workload: Workload) -> str:
    """The `vllm serve` command of one replica."""
    deployment = point.deployment
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    context = load_model(str(deployment.model)).max_context_tokens
    length = min(context, -(-longest // 1024) * 1024)
    parts = [
        f"vllm serve {deployment.model}",
        f"--tensor-parallel-size {deployment.tensor_parallel}",
        f"--max-num-seqs {deployment.max_num_seqs}",
        f"--max-num-batched-tokens {deployment.max_num_batched_tokens}",
        f"--max-model-len {length}",
        f"--gpu-memory-utilization {deployment.gpu_memory_utilization:g}",
        "--enable-prefix-caching" if deployment.prefix_caching else "--no-enable-prefix-caching",
        f"--block-size {deployment.block_tokens}",
    ]
    quantized = {"fp8": "fp8", "fp8_block": "fp8", "int4": "awq_marlin", "int8": "compressed-tensors"}
    if deployment.weight_dtype in quantized:
        parts.append(f"--quantization {quantized[deployment.weight_dtype]}")
    else:
        parts.append(f"--dtype {deployment.weight_dtype}")
    if deployment.kv_dtype in ("fp8", "float8"):
        parts.append("--kv-cache-dtype fp8")
    return " ".join(parts)


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


def tables(found: Plan) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of a plan: (title, rows)."""
    names = {
        "gpu": "gpu",
        "tensor_parallel": "TP",
        "replicas": "replicas",
        "max_num_seqs": "batch",
        "max_num_batched_tokens": "chunk",
        "usd_per_hour": "US$/h",
        **{f"{target.metric}_{target.statistic}_s": f"{target.metric}_{target.statistic} s" for target in found.slo.targets},
        "utilization": "busy",
        "kv_peak_fraction": "KV peak",
        "kept": "kept",
        "simulated": "simulated",
        "mark": "",
    }
    rows = [
        {
            name: "-" if row[key] is None else f"{row[key]:.2f}" if key == "usd_per_hour" else row[key]
            for key, name in names.items()
        }
        for row in found.best_rows()
    ]
    title = f"{found.model} on {found.workload}: best of each group, {found.simulations} simulations in {found.wall_s:.0f} s"
    shown = [(title, rows)]
    if found.rejected:
        shown.append(("Ruled out by a bound", [dict(row) for row in found.rejected]))
    return shown
