"""`llmlab validate here`: calibrate this machine, predict runs of the real engine, then run them and compare.

The engine serves a model of about 100 million parameters with random weights. Its steps are timed under closed loops of
evenly spread lengths and a formula of their shape is fitted (`harness/calibration/steps.py`); or, where a profile of
`llmlab calibrate` is given, a step's time is composed of its operators' times. The serving simulator, driving the same
scheduler, then predicts open-loop runs whose lengths and arrivals come from a real trace scaled to this machine, at loads
from idle to saturation. Nothing of those runs is seen before all predictions are made.

Lengths are divided by `LENGTH_SCALE`. The interval of a prediction is the 5th to 95th percentile of simulations whose steps
wander as the calibrated ones did. Units: seconds, tokens, requests per second; metrics in milliseconds where their name says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmlab.harness.calibration.here import engine_here
from llmlab.harness.calibration.steps import StepFit, fit_steps, with_idle
from llmlab.harness.machine import describe, usable_threads
from llmlab.harness.runtime.engine import Engine, Job, columns
from llmlab.harness.runtime.probe import probe, probe_pauses
from llmlab.harness.timing.measure import NOISY_OTHERS, watch
from llmlab.harness.validation.summary import error_figures, grouped
from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import random_weights
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.router import make_router
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.hardware.profile import load_profile
from llmlab.simulator.model.description import ModelDescription, load_model
from llmlab.simulator.serving.cluster import Cluster, StepTime
from llmlab.simulator.serving.metrics import request_table
from llmlab.simulator.workload.synthetic import gamma, lognormal
from llmlab.simulator.workload.trace import read_trace
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

TRACE = Path("traces") / "azure2023_conv.csv.gz"
LENGTH_SCALE = 8
LONGEST_PROMPT, LONGEST_OUTPUT = 512, 96
SATURATED = 0.95
"""From this part of the predicted capacity on, a load counts as saturated: waiting grows with the length of the run."""

MODEL = "llmlab/llama-100m"
ENGINE_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
BLOCK_TOKENS, NUM_BLOCKS, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 16, 768, 16, 256

PAUSE_S = 0.7
"""Mean idle pause of the calibration, about that between requests at a low load."""
SETTLE_S = 0.5
"""For so long after an idle pause the machine counts as not yet at its usual speed."""

METRICS = (
    "ttft_mean_ms",
    "ttft_p50_ms",
    "ttft_p90_ms",
    "tpot_mean_ms",
    "tpot_p90_ms",
    "e2e_mean_ms",
    "e2e_p90_ms",
    "out_tok_per_s",
)
TARGETS = {"tpot": 0.08, "e2e": 0.10, "ttft": 0.15}
"""Median absolute error below saturation that each latency is held to."""

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Effort:
    """How long to calibrate, which loads (parts of the predicted capacity) to run, and for how long each."""

    calibrate_s: float
    loads: tuple[float, ...]
    run_s: float
    fewest_requests: int
    simulations: int


FULL = Effort(50.0, (0.15, 0.35, 0.55, 0.7, 1.3), 25.0, 10, 40)
QUICK = Effort(22.0, (0.2, 0.5, 1.3), 14.0, 8, 30)


def validate_here(
    *,
    quick: bool = False,
    trace: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "auto",
    effort: Effort | None = None,
    model: str | ModelConfig = MODEL,
    profile: str | Path | None = None,
    make_engine: Callable[[], Engine] | None = None,
    progress: Say = lambda name, done, total: None,
) -> dict[str, Any]:
    """Calibrate, predict, run, compare; return {rows, excluded, summary}.

    `others` of a row is the part of the processors that other programs used during its run: what no prediction knows.

    Args:
        quick: fewer and shorter runs.
        trace: file of requests; `$LLMLAB_DATA/traces/azure2023_conv.csv.gz` where None, else synthetic ones like them.
        seed: of weights, prompts and draws.
        threads: of PyTorch; all usable ones where None.
        device: "cpu", "cuda" or "auto", which takes a GPU where there is one.
        effort: overrides `quick`.
        model: preset, path of a `config.json`, or an architecture; dense, of the Llama family.
        profile: file written by `llmlab calibrate`: predict from operators instead of timing the engine's steps.
        make_engine: a fresh engine under `new_scheduler()`; one that runs the model on the device where None.
        progress: told (what, done, total).

    Raises:
        InputError: an unreadable trace, fewer than one thread, or a device this machine lacks.
    """
    effort = effort or (QUICK if quick else FULL)
    threads = usable_threads() if threads is None else threads
    if threads < 1:
        raise InputError("validate here", "threads", threads, "must be at least 1")
    device = _device(device)
    requests = like_trace(trace, np.random.default_rng([seed, 1]))
    config = load_model(model).config if isinstance(model, str) else model
    composed = OperatorSteps.read(profile, config, device) if profile is not None else None
    with _threads(threads):
        make_engine = make_engine or _engine_maker(config, seed, device)
        with watch() as calibrating:
            fit = composed or calibrate_steps(make_engine, config, effort.calibrate_s, seed, progress)
        capacity = predicted_capacity(requests, fit.step_ns)
        workloads = [
            at_load(requests, load * capacity, effort, np.random.default_rng([seed, 3, number]))
            for number, load in enumerate(effort.loads)
        ]
        predictions = []
        for number, workload in enumerate(workloads):
            progress("predicting", number, len(workloads))
            predictions.append(predict(workload, fit, effort.simulations, seed))
        measured, others = [], []
        for number, workload in enumerate(workloads):
            progress("running", number, len(workloads))
            rng = np.random.default_rng([seed, 4, number])
            with watch() as running:
                measured.append(run_here(make_engine(), workload, config.vocab_size, rng))
            others.append(running[0].others)
    rows = [
        {
            "row_id": f"here-{round(100 * load)}%",
            "metric": metric,
            "measured": found[metric],
            "predicted": guess[metric],
            "low": low[metric],
            "high": high[metric],
            "source": requests.name,
            "fitted": False,
            "load": load,
            "saturated": load >= SATURATED,
            "rate_per_s": load * capacity,
            "requests": len(workload),
            "others": used,
        }
        for load, workload, found, used, (guess, low, high) in zip(effort.loads, workloads, measured, others, predictions)
        for metric in METRICS
    ]
    setting = {
        "machine": describe().device_name(device),
        "device": device,
        "threads": threads,
        "parameters": config.num_parameters,
        "capacity_requests_per_s": capacity,
        "others_while_calibrating": calibrating[0].others,
        "calibration": fit.as_dict(),
    }
    return {"rows": rows, "excluded": [], "summary": summarize(rows) | setting}


class StepTimes(Protocol):
    """What a prediction needs to know of this machine."""

    @property
    def after_idle(self) -> float:
        """How many times as long steps take shortly after the engine was idle."""

    def step_ns(self, shape: BatchShape) -> int:
        """Predicted whole nanoseconds of one step."""

    def unsteady_ns(self, rng: np.random.Generator) -> StepTime:
        """The same on another day."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report."""


def calibrate_steps(make_engine: Callable[[], Engine], config: ModelConfig, seconds: float, seed: int, say: Say) -> StepFit:
    """Time the engine's steps under closed loops and fit them; then some after idle pauses."""
    steps = probe(
        make_engine,
        vocab_size=config.vocab_size,
        clients=(1, 2, 3, 4, 6, 8, 11, MAX_NUM_SEQS),
        seconds=seconds,
        longest_prompt=LONGEST_PROMPT,
        longest_output=LONGEST_OUTPUT,
        rng=np.random.default_rng([seed, 2]),
        say=say,
    )
    paused = probe_pauses(
        make_engine,
        vocab_size=config.vocab_size,
        seconds=seconds / 4,
        pause_s=PAUSE_S,
        longest_prompt=LONGEST_PROMPT,
        rng=np.random.default_rng([seed, 6]),
        say=say,
    )
    return with_idle(fit_steps(steps, config), paused)


@dataclass(frozen=True)
class OperatorSteps:
    """Step times composed of operators that were timed one by one."""

    cost: StepCost
    after_idle: float = 1.0

    @classmethod
    def read(cls, profile: str | Path, config: ModelConfig, device: str) -> OperatorSteps:
        """Read a profile of this machine.

        Raises:
            InputError: the file cannot be read or is no profile.
        """
        measured = load_profile(profile)
        dtype = ENGINE_DTYPE[device]
        engine = engine_here(measured)
        return cls(StepCost(ModelDescription(config), measured, weight_dtype=dtype, kv_dtype=dtype, engine=engine))

    def step_ns(self, shape: BatchShape) -> int:
        """Predicted whole nanoseconds of one step."""
        return self.cost.step_ns(shape)

    def unsteady_ns(self, rng: np.random.Generator) -> StepTime:
        """All steps too slow or too quick together, by as much as the operators' residuals allow.

        The interval is asked for once per kind of step (with prompts or without) and power of two of its tokens.
        """
        place = float(rng.uniform(-1.0, 1.0))
        intervals: dict[tuple[bool, int], tuple[float, float]] = {}

        def step_ns(shape: BatchShape) -> int:
            kind = (bool(shape.prefill), shape.new_tokens.bit_length())
            if kind not in intervals:
                intervals[kind] = self.cost.interval(shape)
            low, high = intervals[kind]
            factor = 1 + place * ((high - 1) if place > 0 else (1 - low))
            return max(1, round(self.cost.seconds(shape) * factor * 1e9))

        return step_ns

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {"profile": self.cost.profile.device.name, "engine": asdict(self.cost.engine)}


def like_trace(trace: str | Path | None, rng: np.random.Generator) -> Workload:
    """Requests of a real trace with lengths scaled to a small machine, or synthetic ones with that trace's statistics.

    Raises:
        InputError: the named trace cannot be read.
    """
    if trace is None and "LLMLAB_DATA" in os.environ:
        found = Path(os.environ["LLMLAB_DATA"]) / TRACE
        trace = found if found.is_file() else None
    if trace is not None:
        whole = read_trace(trace)
        name, arrival_ns = whole.name, whole.arrival_ns
        prompt, output = whole.prompt_tokens, whole.output_tokens
    else:  # mean and coefficient of variation of the Azure conversation trace (arXiv:2311.18677)
        name, count = "synthetic, like azure2023_conv", 20_000
        arrival_ns = gamma(count, 5.53, 1.09, rng)
        prompt, output = lognormal(count, 1155, 0.96, rng), lognormal(count, 211, 0.77, rng)
    return Workload(
        arrival_ns,
        np.clip(np.ceil(prompt / LENGTH_SCALE), 1, LONGEST_PROMPT),
        np.clip(np.ceil(output / LENGTH_SCALE), 1, LONGEST_OUTPUT),
        name=name,
    )


def at_load(requests: Workload, rate_per_s: float, effort: Effort, rng: np.random.Generator) -> Workload:
    """A stretch of consecutive requests, its gaps stretched so that they arrive at this mean rate from time 0 on."""
    count = min(max(effort.fewest_requests, round(rate_per_s * effort.run_s)), len(requests))
    begin = int(rng.integers(len(requests) - count + 1))
    part = requests.select(slice(begin, begin + count))
    offset_ns = part.arrival_ns - part.arrival_ns[0]
    wanted_ns = (count - 1) / rate_per_s * NANOSECONDS
    arrival_ns = np.rint(offset_ns * (wanted_ns / max(int(offset_ns[-1]), 1))).astype(np.int64)
    return Workload(arrival_ns, part.prompt_tokens, part.output_tokens, name=part.name)


def new_scheduler() -> ChunkedPrefill:
    """The policy both executors drive."""
    blocks = KVBlocks(NUM_BLOCKS, BLOCK_TOKENS)
    return ChunkedPrefill(blocks, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS)


def simulate(workload: Workload, step_ns: StepTime, after_idle: float) -> dict[str, np.ndarray]:
    """The simulator's per-request table of one replica."""
    router = make_router("round_robin", 1, np.random.default_rng(0))
    cluster = Cluster(
        workload,
        [new_scheduler()],
        step_ns,
        router,
        block_tokens=BLOCK_TOKENS,
        after_idle=after_idle,
        settle_ns=round(SETTLE_S * NANOSECONDS),
    )
    return request_table(workload, cluster.run())


def predicted_capacity(requests: Workload, step_ns: StepTime) -> float:
    """Requests per second served when more wait than can run, the middle of a burst of 200."""
    part = requests.first(min(200, len(requests)))
    burst = Workload(np.zeros(len(part), dtype=np.int64), part.prompt_tokens, part.output_tokens)
    ends = np.sort(simulate(burst, step_ns, 1.0)["e2e_s"])
    first, last = len(ends) // 5, len(ends) - 1 - len(ends) // 5
    return float((last - first) / (ends[last] - ends[first]))


def metrics_of(table: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The compared figures of one run."""
    figures: dict[str, float] = {}
    for name in METRICS:
        if not name.endswith("_ms"):
            continue
        what, statistic, _ = name.split("_")
        values = table[f"{what}_s"][np.isfinite(table[f"{what}_s"])] * 1e3
        figures[name] = float(values.mean() if statistic == "mean" else np.quantile(values, int(statistic[1:]) / 100))
    span_s = float((table["arrival_s"] + table["e2e_s"]).max() - table["arrival_s"].min())
    return figures | {"out_tok_per_s": float(table["output_tokens"].sum() / span_s)}


def predict(
    workload: Workload, fit: StepTimes, simulations: int, seed: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Predicted figures, and the low and high ends of their intervals."""
    guess = metrics_of(simulate(workload, fit.step_ns, fit.after_idle))
    others = [
        metrics_of(simulate(workload, fit.unsteady_ns(np.random.default_rng([seed, 5, number])), fit.after_idle))
        for number in range(simulations)
    ]
    low, high = {}, {}
    for name, value in guess.items():
        ends = np.quantile([other[name] for other in others], [0.05, 0.95])
        low[name], high[name] = min(float(ends[0]), value), max(float(ends[1]), value)
    return guess, low, high


def run_here(engine: Engine, workload: Workload, vocab_size: int, rng: np.random.Generator) -> dict[str, float]:
    """Serve the workload for real; return the measured figures."""
    engine.run([Job(rng.integers(0, vocab_size, 64).tolist(), 4) for _ in range(2)], clients=1)  # warm up
    jobs = [
        Job(rng.integers(0, vocab_size, prompt).tolist(), output, arrival_ns / NANOSECONDS)
        for arrival_ns, prompt, output in zip(
            workload.arrival_ns.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist()
        )
    ]
    return metrics_of(columns(engine.run(jobs).requests))


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Error figures per latency below saturation, whether the targets are met, and how often the interval held."""
    below = [{**row, "kind": row["metric"].split("_")[0]} for row in rows if not row["saturated"]]
    kinds = grouped(below, "kind")
    return {
        "below_saturation": kinds,
        "targets": dict(TARGETS),
        "met": {line["kind"]: line["median_abs_error"] <= TARGETS[line["kind"]] for line in kinds if line["kind"] in TARGETS},
        "coverage": error_figures(rows)["coverage"],
        "coverage_below_saturation": error_figures(below)["coverage"],
        "by_load": grouped(list(rows), "load"),
    }


def tables(result: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What the command prints: one table of loads and metrics, one of errors."""
    summary = result["summary"]
    title = f"{summary['machine']}, {summary['threads']} threads, {summary['parameters'] / 1e6:.0f} M parameters"
    shown = []
    for row in result["rows"]:
        inside = row["low"] <= row["measured"] <= row["high"]
        shown.append(
            {
                "load": f"{row['load']:.0%}" + (" saturated" if row["saturated"] else ""),
                "metric": row["metric"],
                "measured": row["measured"],
                "predicted": row["predicted"],
                "error": f"{row['predicted'] / row['measured'] - 1:+.1%}",
                "interval": f"{row['low']:.4g} .. {row['high']:.4g}",
                "inside": "yes" if inside else "no",
            }
        )
    yield title, shown
    busiest = max(summary["others_while_calibrating"], *(row["others"] for row in result["rows"]))
    if busiest > NOISY_OTHERS:
        title = "these figures say little: others used the processors"
        loads = {f"{row['load']:.0%}": row["others"] for row in result["rows"]}
        shares = {"calibrating": summary["others_while_calibrating"], **loads}
        yield title, [{"while": name, "of the processors": f"{share:.0%}"} for name, share in shares.items()]
    yield (
        "below saturation",
        [
            {
                "metric": line["kind"],
                "rows": line["n"],
                "median error": f"{line['median_abs_error']:.1%}",
                "target": f"{TARGETS[line['kind']]:.0%}" if line["kind"] in TARGETS else "",
                "bias": f"{line['bias']:+.1%}",
                "in interval": f"{line['coverage']:.0%}",
            }
            for line in summary["below_saturation"]
        ],
    )


def _device(device: str) -> str:
    import torch

    known = ("cpu", "cuda", "auto")
    if device not in known:
        raise InputError("validate here", "device", device, f"is none of {', '.join(known)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("validate here", "device", device, "this machine has no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _engine_maker(config: ModelConfig, seed: int, device: str) -> Callable[[], Engine]:
    import torch

    from llmlab.kernels.models.llama_torch import LlamaTorch

    weights = random_weights(config, np.random.default_rng([seed, 0]))
    model = LlamaTorch(config, weights, device=device, dtype=getattr(torch, ENGINE_DTYPE[device]))
    return lambda: Engine(model, new_scheduler())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with this many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
