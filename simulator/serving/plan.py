"""The cheapest deployment that keeps an objective: every option is enumerated, bounded, and simulated in order of price.

1. The space: device x tensor parallelism x dtypes x scheduler x router x batch and chunk size x replicas.
2. Lower bounds from the cost model (`bounds`) exclude what does not fit, what is too slow even for a lone request, and
   replica counts that cannot do the work in time.
3. The rest is simulated in order of price, first on the busiest stretch of the workload. What misses a limit there by a factor
   `HOPELESS` goes no further; everything else is simulated on the whole workload until it ends or must miss a limit. A
   batch size that was never reached gives the same run as every larger one, which is then not repeated.
4. The first price at which something keeps the objective is the answer's: everything cheaper was excluded or failed, and
   everything dearer is dearer. The search goes on until something of another kind keeps it too, the runner-up.

Every simulation is a pure function of its inputs, and rounds are formed without looking at the clock, so the answer does not
depend on the engine or the number of workers. Units: seconds, tokens, US dollars per hour.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import dtype_name
from llmlab.simulator.hardware.profile import load_device
from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving import answer
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.search import (
    BATCHED_TOKENS,
    NUM_SEQS,
    ON_WHOLE,
    WINDOW_ONLY,
    Context,
    Point,
    Progress,
    Search,
    busiest,
)
from llmlab.simulator.serving.slo import Slo
from llmlab.simulator.sweep import ENGINES, Store, start_engine
from llmlab.simulator.workload.workload import Workload


@dataclass(frozen=True)
class Plan:
    """The answer and how it was found.

    Attributes:
        chosen: cheapest option that kept the objective on the whole workload; None where there is none.
        runner_up: the next cheapest of another kind.
        points: every option simulated, at the last level it reached and in order of price.
        rejected: groups that a bound excludes as a whole, with the reason.
        searched: how many options were considered, and what became of them; the parts add up.
        binds: what keeps anything cheaper from being enough.
        robust: whether the answer still keeps the objective when every step takes as long as the calibration allows,
            `stretch` times as long.
        safe: an option that keeps it then; its figures are those of the slow run.
        why: where the time goes, headroom, sensitivity, what more money buys; empty where that was not asked for.
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
    searched: Mapping[str, Any]
    binds: str
    robust: bool | None
    safe: Point | None
    stretch: float
    commands: Mapping[str, str]
    wall_s: float
    why: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """How vLLM is started."""
        return self.commands.get("vllm", "")

    @property
    def simulations(self) -> int:
        """Runs of the search and of what follows it."""
        return int(self.searched["simulations"])

    def best_rows(self) -> list[dict[str, Any]]:
        """The best option of every group."""
        rows = []
        for group in dict.fromkeys(point.group for point in self.points):
            own = [point for point in self.points if point.group == group]
            kept = [point for point in own if point.kept and point.level == "whole"]
            named = [point for point in (self.chosen, self.runner_up) if point is not None and point.group == group]
            best = named[0] if named else min(kept, key=lambda p: p.order) if kept else min(own, key=lambda p: p.ratio)
            mark = "chosen" if best is self.chosen else "runner-up" if best is self.runner_up else ""
            rows.append(best.row() | {"mark": mark})
        return sorted(rows, key=lambda row: (not row["kept"], row["usd_per_hour"]))

    def fronts(self) -> list[dict[str, Any]]:
        """Per clause of the objective: cost against latency, ready to draw; the verdict is that of the whole workload."""
        return answer.fronts(self)

    def sentences(self) -> list[str]:
        """The answer in words, one thought per line."""
        return answer.sentences(self)

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
            "why": dict(self.why),
            "robust": self.robust,
            "safe": self.safe.row() if self.safe else None,
            "stretch": self.stretch,
            "command": self.command,
            "commands": dict(self.commands),
            "rows": self.best_rows(),
            "points": [point.row() for point in self.points],
            "rejected": [dict(row) for row in self.rejected],
            "searched": dict(self.searched),
            "fronts": self.fronts(),
            "prices": {name: dict(price) for name, price in self.prices.items()},
            "simulations": self.simulations,
            "said": self.sentences(),
            "notes": list(self.notes),
            "wall_s": self.wall_s,
        }


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


def names_of(given: str | Sequence[str], what: str) -> tuple[str, ...]:
    """Options separated by commas, each once.

    Raises:
        InputError: none.

    >>> names_of("bf16, fp8", "weight_dtype")
    ('bf16', 'fp8')
    """
    parts = given.split(",") if isinstance(given, str) else given
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise InputError("plan", what, given, "names nothing")
    return found


def plan(
    model: str,
    workload: Workload,
    slo: Slo,
    gpus: Sequence[str],
    *,
    max_gpus: int = 64,
    prices: Mapping[str, float] | None = None,
    engine: str = "vllm",
    weight_dtype: str | Sequence[str] = "bfloat16",
    kv_dtype: str | Sequence[str] = "bfloat16",
    scheduler: str | Sequence[str] = "chunked_prefill",
    router: str | Sequence[str] = "least_outstanding",
    layouts: bool = True,
    pipeline: Sequence[int] = (1,),
    num_seqs: Sequence[int] = NUM_SEQS,
    chunks: Sequence[int] = BATCHED_TOKENS,
    gpu_memory_utilization: float = 0.9,
    prefix_caching: bool = True,
    seed: int = 0,
    workers: int = 1,
    run_on: str = "local",
    store: str | Path | None = None,
    explained: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Search the cheapest deployment that keeps `slo` on `workload`.

    Args:
        gpus: devices to choose from; one deployment uses one kind.
        max_gpus: largest number of devices of a deployment.
        prices: US dollars per device and hour by name as given in `gpus`; the devices' dated defaults otherwise.
        weight_dtype, kv_dtype, scheduler, router: one name, several separated by commas, or a sequence.
        layouts: also deal experts to the devices of a replica, and requests where attention is latent.
        pipeline: numbers of pipeline stages to try.
        num_seqs, chunks: batch sizes and tokens per step to try.
        workers: processes; 1 stays in this one.
        run_on: "local" processes or "ray".
        store: SQLite file that keeps every simulated option; a search that was stopped goes on from it.
        explained: say where the time goes, the headroom and the sensitivity: some 40 simulations more.
        progress: called with (stage, done, total).

    Raises:
        InputError: an unknown name, a price that is negative or for a device not asked for, or a model that fits nowhere.
    """
    started = time.perf_counter()
    report = progress or (lambda name, done, total: None)
    known_prices = _prices(gpus, max_gpus, prices or {})
    for what, numbers in (("max_num_seqs", num_seqs), ("max_num_batched_tokens", chunks), ("pipeline", pipeline)):
        if not numbers or min(numbers) < 1:
            raise InputError("plan", what, list(numbers), "must be at least 1")
    if min(num_seqs) > max(chunks):
        raise InputError("plan", "max_num_seqs", min(num_seqs), f"must not pass max_num_batched_tokens={max(chunks)}")
    weights, caches = names_of(weight_dtype, "weight_dtype"), names_of(kv_dtype, "kv_dtype")
    config = load_model(model).config
    bases = [
        Deployment(
            model,
            gpu,
            degree,
            scheduler=policy,
            router=routing,
            price_usd_per_hour=price["usd_per_hour"],
            gpu_memory_utilization=gpu_memory_utilization,
            prefix_caching=prefix_caching,
            weight_dtype=dtype_name(weight),
            kv_dtype=dtype_name(cache),
            engine=engine,
            expert_parallel=experts,
            attention_data_parallel=groups,
            pipeline_parallel=stages,
        )
        for gpu, price in known_prices.items()
        for stages in sorted(set(pipeline))
        for degree in (2**power for power in range(20))
        if degree <= load_device(gpu).device.devices_per_node and degree * stages <= max_gpus
        for experts in sorted({1, degree if layouts and config.is_moe and degree <= config.num_experts else 1})
        for groups in sorted({1, degree if layouts and config.latent else 1})
        for weight in weights
        for cache in caches
        for policy in names_of(scheduler, "scheduler")
        for routing in names_of(router, "router")
    ]
    window = busiest(workload)
    if len(window) == len(workload):
        window = workload
    context = Context({"window": window, "whole": workload}, slo, seed)
    with ExitStack() as stack:
        opened = stack.enter_context(Store(store)) if store is not None else None
        started_engine = stack.enter_context(start_engine(run_on, workers=workers, context=context))
        search = Search(slo, workload, window, max_gpus, seed, started_engine, opened, report)
        search.enumerate(bases, sorted(set(num_seqs)), sorted(set(chunks)))
        search.refuse_if_nothing_fits(model, gpus)
        chosen, runner_up, points = search.find()
        found_s = time.perf_counter() - started
        simulated = search.simulations
        stretch, robust, safe = answer.stress(search, chosen, points)
        why = answer.why(search, chosen, runner_up) if explained and chosen is not None else {}
    counts = dict(search.counts)
    considered = counts.pop("considered", 0)
    searched = {
        "considered": considered,
        "parts": counts,
        "deployments_simulated": counts.get(WINDOW_ONLY, 0) + counts.get(ON_WHOLE, 0),
        "search_simulations": simulated,
        "simulations": search.simulations,
        "seconds": found_s,
        "per_minute": 60 * considered / found_s,
        "simulations_per_minute": 60 * simulated / found_s,
        "workers": workers,
        "run_on": run_on,
    }
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
        searched=searched,
        binds=answer.explain(chosen, points, search.rejected),
        robust=robust,
        safe=safe,
        stretch=stretch,
        commands=answer.launch_commands(chosen, workload) if chosen else {},
        wall_s=time.perf_counter() - started,
        why=why,
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


def where_to_run(given: Sequence[str]) -> tuple[str, str]:
    """Tell serving engines from places to run: (engine, "local" or "ray").

    Raises:
        InputError: two of a kind.

    >>> where_to_run(["ray", "sglang"]), where_to_run([])
    (('sglang', 'ray'), ('vllm', 'local'))
    """
    places = [name for name in given if name in ENGINES]
    serving = [name for name in given if name not in ENGINES]
    for found in (places, serving):
        if len(found) > 1:
            raise InputError("--engine", "engine", ",".join(found), "names two of a kind")
    return (serving or ["vllm"])[0], (places or ["local"])[0]


def read_sizes(text: str, what: str) -> tuple[int, ...]:
    """Read `64,256`.

    Raises:
        InputError: something else than whole numbers from 1.

    >>> read_sizes("64, 256", "--max-num-seqs")
    (64, 256)
    """
    found = []
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise InputError(what, "size", part.strip(), "must be a whole number, at least 1")
        found.append(int(part))
    return tuple(found)
