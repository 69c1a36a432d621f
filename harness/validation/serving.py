"""`llmlab validate serving`: simulate every row of a table of published measurements and say how far off it was.

One row becomes one deployment and one load, goes through the same scheduler and simulator as everything else, and comes back
as one prediction per metric with an interval. A row out of reach is excluded with its reason.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation.fluid import settled
from llmlab.harness.validation.intervals import interval
from llmlab.harness.validation.layouts import Shared, shared_out
from llmlab.harness.validation.left_out_table import beside, shipped_table
from llmlab.harness.validation.loads import Load, load_of, metrics_of
from llmlab.harness.validation.resolve import (
    EngineFacts,
    Unsimulated,
    has_static_scales,
    on_device,
    resolve_device,
    resolve_engine,
    resolve_kv_dtype,
    resolve_model,
    resolve_weight_dtype,
)
from llmlab.harness.validation.rows import STATISTICS, MeasuredRow, read_rows
from llmlab.harness.validation.summary import error_figures, grouped
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.cost.engine import EngineModel, fit_of, load_engine
from llmlab.simulator.hardware.device import Device
from llmlab.simulator.hardware.profile import PRIOR_WIDENING, DeviceProfile
from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving.deployment import Deployment, Site, resolve
from llmlab.simulator.serving.network import Transfer
from llmlab.simulator.serving.pools import Fleet, Pool
from llmlab.simulator.serving.simulate import SimulationResult, simulate
from llmlab.simulator.serving.simulate_fleet import simulate_fleet

BLOCK_TOKENS = 16
FLUID_FROM = 3e5
"""Tokens in flight from which a loop over prefill and decode workers is taken by its means."""
POOL_FROM = 2e6
"""Tokens from which starting processes pays."""
UNSTREAMED_REQUEST_S = 4e-6
"""Host time per request and step of an offline job: nobody is sent its tokens one by one."""
INTERVALS = Path(__file__).resolve().parent / "serving_intervals.yaml"
KEYS = (
    "row_id",
    "metric",
    "measured",
    "predicted",
    "low",
    "high",
    "source",
    "fitted",
    "load_mode",
    "device",
    "model",
    "scored",
)


@dataclass(frozen=True)
class Setup:
    """What one row asks to be simulated."""

    row: MeasuredRow
    facts: EngineFacts
    deployment: Deployment
    load: Load
    shared: Shared

    @property
    def prefill(self) -> Deployment | None:
        """What computes prompts, where other workers do."""
        if (apart := self.shared.prefill) is None:
            return None
        return replace(
            self.deployment,
            tensor_parallel=apart.devices,
            expert_parallel=apart.experts,
            attention_data_parallel=apart.requests,
            replicas=apart.replicas,
        )


def setup_of(row: MeasuredRow, engines: Mapping[str, EngineModel] | None = None) -> Setup:
    """Turn a row into a deployment and a load.

    Args:
        row: what was published.
        engines: constants to use instead of the shipped ones, by engine key (what a fit varies).

    Raises:
        Unsimulated: something is unknown, not stated, or not modelled.
    """
    load = load_of(row)
    model, device = resolve_model(row.model), resolve_device(row.gpu)
    if "spec_decode=True" in row.text("other_config") or "speculative" in row.text("notes"):
        raise Unsimulated("speculative decoding")
    facts = on_device(resolve_engine(row.text("engine"), row.text("engine_version"), row.text("measured_date")), device)
    weight_dtype = resolve_weight_dtype(row.text("weight_dtype"), row.model)
    kv_dtype = resolve_kv_dtype(
        row.text("kv_dtype"), weight_dtype, facts.key, scaled_cache="InferenceX" in row.text("len_dist")
    )
    shared = shared_out(row, moe=model.is_moe, least=_least_devices(model.name, device, weight_dtype))
    engine = (engines or {}).get(facts.key) or load_engine(facts.key)
    if facts.key == "trtllm-1.0" and has_static_scales(row.model, weight_dtype):
        engine = engine.with_constants(static_scales=True, sustained_compute=load_engine("trtllm").sustained_compute)
    if row.load_mode == "offline_max_throughput":
        engine = engine.with_constants(host_request_step_s=min(engine.host_request_step_s, UNSTREAMED_REQUEST_S))
    batched = row.count("max_num_batched_tokens") or facts.max_num_batched_tokens
    seqs = row.count("max_num_seqs") or facts.max_num_seqs
    chunked = row.flags.get("chunked_prefill", facts.chunked)
    caching = row.flags.get("prefix_caching", facts.prefix_caching) and bool(load.workload.block_hashes)
    blocks = row.count("kv_blocks")
    block_tokens = row.count("kv_block_size") or BLOCK_TOKENS
    workload = load.workload
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    if load.whole_batch:
        # The whole batch starts in one step, and it ran: the memory for it was there.
        batched = max(int(workload.prompt_tokens.sum()), len(workload))
        seqs, chunked = len(workload), True
        blocks = len(workload) * math.ceil(longest / block_tokens) + 1
    elif not chunked:
        batched = max(batched, longest)
    found = re.search(r"gpu_mem_util=(0?\.\d+)", row.text("other_config"))
    deployment = Deployment(
        model=model.name,
        device=device.name,
        tensor_parallel=shared.whole.devices,
        expert_parallel=shared.whole.experts,
        attention_data_parallel=shared.whole.requests,
        replicas=shared.whole.replicas,
        scheduler=_scheduler(chunked, facts.reserves_outputs and not load.whole_batch),
        max_num_seqs=min(seqs, batched),
        max_num_batched_tokens=batched,
        block_tokens=block_tokens,
        gpu_memory_utilization=float(found.group(1)) if found else 0.9,
        prefix_caching=caching,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        engine=engine,
        kv_blocks=blocks,
        max_model_tokens=0,
        router="round_robin",
    )
    return Setup(row, facts, deployment, load, shared)


def _scheduler(chunked: bool, reserves_outputs: bool) -> str:
    """The reference's name for how the engine schedules."""
    if reserves_outputs:
        return "guaranteed_no_evict" if chunked else "guaranteed_prefill_first"
    return "chunked_prefill" if chunked else "continuous_batching"


def _least_devices(model: str, device: Device, weight_dtype: str) -> int:
    """The power of two of devices over which the weights leave something free."""
    held = load_model(model).weight_bytes(1, weight_dtype) / (0.85 * device.hbm_bytes)
    return 1 << max(0, math.ceil(math.log2(held)))


def _site(setup: Setup) -> Site:
    """Size the deployment."""
    try:
        return resolve(setup.deployment)
    except InputError as error:
        if error.field == "memory":
            raise Unsimulated("does not fit: " + error.why.removeprefix("does not fit: ")) from None
        raise Unsimulated(str(error)) from None


def _statistics(name: str, values: np.ndarray) -> dict[str, float]:
    kept = values[np.isfinite(values)] * 1e3
    if not len(kept):
        return {}
    quantiles = {f"{name}_p{p}_ms": float(np.quantile(kept, p / 100)) for p in (50, 90, 95, 99)}
    return {f"{name}_mean_ms": float(kept.mean()), **quantiles}


def _gaps(gaps_ns: Mapping[int, int]) -> np.ndarray:
    """Inter-token gaps in seconds, thinned to what quantiles need."""
    gaps = np.array(sorted(gaps_ns))
    counts = np.array([gaps_ns[gap] for gap in gaps.tolist()])
    if not len(gaps):
        return np.empty(0)
    return np.repeat(gaps, np.maximum(1, np.rint(counts * min(1.0, 2e5 / counts.sum())).astype(int))) / 1e9


def measure(result: SimulationResult, load: Load, devices: int) -> dict[str, float]:
    """What the source would have printed for this run, by column name; latencies in ms.

    In a closed loop the rate follows from Little's law, clients / mean time in the system; else it is what was finished
    over the time from the first request to the last token.
    """
    counted = load.counted
    table = {name: values[counted] for name, values in result.requests.items()}
    done = np.isfinite(table["e2e_s"])
    if not done.any():
        return {}
    found: dict[str, float] = {}
    for name in ("ttft", "tpot", "e2e"):
        found |= _statistics(name, table[f"{name}_s"])
    found |= _statistics("itl", _gaps(result.log.gaps_ns))
    if clients := load.workload.clients:
        requests_per_s = clients / float(np.mean(table["e2e_s"][done]))
    else:
        ends = table["arrival_s"][done] + table["e2e_s"][done]
        requests_per_s = int(done.sum()) / float(ends.max() - table["arrival_s"].min())
    outputs, prompts = float(table["output_tokens"][done].mean()), float(table["prompt_tokens"][done].mean())
    found["req_per_s"] = requests_per_s
    found["out_tok_per_s"] = requests_per_s * outputs
    found["out_tok_per_s_per_gpu"] = requests_per_s * outputs / devices
    found["total_tok_per_s"] = requests_per_s * (outputs + prompts)
    return found


def predict(
    row: MeasuredRow, engines: Mapping[str, EngineModel] | None = None, profile: DeviceProfile | None = None
) -> dict[str, float]:
    """Simulate one row; every metric of its load by column name. Engines' constants or the device may be given instead.

    Raises:
        Unsimulated: the row is out of reach, with the reason.
    """
    setup = setup_of(row, engines)
    if profile is not None:
        setup = replace(setup, deployment=replace(setup.deployment, device=profile))
    if setup.prefill is None:
        result = simulate(_site(setup), setup.load.workload)
    else:
        if setup.load.workload.clients * float(setup.load.workload.output_tokens.mean()) > FLUID_FROM:
            return _settled(setup, setup.prefill)
        pools = (Pool(setup.prefill, "prefill"), Pool(setup.deployment, "decode"))
        try:
            result = simulate_fleet(Fleet(pools, transfer=Transfer(first_token="decode")), setup.load.workload)
        except InputError as error:
            raise Unsimulated(str(error)) from None
    if refused := len(result.log.refused):
        raise Unsimulated(
            f"{refused} of {len(setup.load.workload)} requests refused: {next(iter(result.log.refused.values()))}"
        )
    return measure(result, setup.load, setup.shared.devices)


def _settled(setup: Setup, prefill: Deployment) -> dict[str, float]:
    """A busy loop over prefill and decode workers by its means; percentiles of a latency are taken as equal to it."""
    try:
        first, second = resolve(prefill), resolve(setup.deployment)
    except InputError as error:
        raise Unsimulated(str(error)) from None
    workload = setup.load.workload
    prompt, output = float(workload.prompt_tokens.mean()), float(workload.output_tokens.mean())
    together = max(1, int(first.max_num_batched_tokens // prompt))
    new = round(prompt)
    burst_s = first.cost.seconds(BatchShape(((new, 0),) * together, 0, 0, together))
    alone_s = first.cost.seconds(BatchShape(((new, 0),), 0, 0, 1)) + first.engine.host_request_s

    def step_s(batch: float) -> float:
        requests = max(1, round(batch))
        return second.cost.seconds(BatchShape((), requests, round(requests * (prompt + output / 2)), requests))

    held = second.kv_blocks * setup.deployment.block_tokens / (prompt + output)
    found = settled(
        workload.clients,
        output,
        prefill.replicas * together / burst_s,
        alone_s,
        step_s,
        setup.deployment.replicas,
        max(1.0, min(held, second.max_num_seqs)),
    )
    rate, devices = found["requests_per_s"], setup.shared.devices
    figures = {
        f"{name}_{statistic}_ms": 1e3 * found[f"{kind}_s"]
        for name, kind in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "tpot"), ("e2e", "e2e"))
        for statistic in STATISTICS
    }
    return figures | {
        "req_per_s": rate,
        "out_tok_per_s": rate * output,
        "out_tok_per_s_per_gpu": rate * output / devices,
        "total_tok_per_s": rate * (output + prompt),
    }


@dataclass(frozen=True)
class Outcome:
    """What became of one row: its figures, or the reason why there are none."""

    row: MeasuredRow
    figures: Mapping[str, float]
    reason: str = ""


COLLECT_EVERY = 16
"""Rows after which cycles are collected: a run's processes refer to each other, and few of them hold much memory."""
_seen = count(1)


def _outcome(row: MeasuredRow) -> Outcome:
    if next(_seen) % COLLECT_EVERY == 0:
        gc.collect()
    try:
        return Outcome(row, predict(row))
    except Unsimulated as reason:
        return Outcome(row, {}, str(reason))


def weight_of(row: MeasuredRow) -> float:
    """Roughly how long a row takes to simulate: the tokens of its load."""
    requests = row.stated.get("concurrency") or row.stated.get("batch_size") or min(row.stated.get("num_requests", 1), 3000)
    return requests * row.stated.get("osl", 1)


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""


def _silent(name: str, done: int, total: int) -> None:
    """No progress display."""


def outcomes(rows: Sequence[MeasuredRow], *, workers: int | None = None, progress: Progress = _silent) -> list[Outcome]:
    """Simulate rows on a pool of processes; the results are in the rows' order.

    Rows of one deployment follow each other, so that its step costs are worked out once; the longest come first.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if sum(map(weight_of, rows)) > POOL_FROM else 1
    kinds = [(row.model, row.gpu, row.text("engine"), row.text("engine_version"), str(row.count("tp"))) for row in rows]
    heaviest: dict[tuple[str, ...], float] = {}
    for kind, row in zip(kinds, rows):
        heaviest[kind] = max(heaviest.get(kind, 0.0), weight_of(row))
    order = sorted(range(len(rows)), key=lambda i: (-heaviest[kinds[i]], kinds[i], -weight_of(rows[i])))
    found: list[Outcome | None] = [None] * len(rows)

    def keep(results: Iterable[Outcome]) -> None:
        progress("", 0, len(rows))
        for number, (i, outcome) in enumerate(zip(order, results), start=1):
            found[i] = outcome
            progress(outcome.row.source, number, len(rows))

    if workers <= 1:
        keep(map(_outcome, (rows[i] for i in order)))
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            keep(pool.map(_outcome, [rows[i] for i in order], chunksize=8))
    return [outcome for outcome in found if outcome is not None]


def _intervals() -> Mapping[str, Any]:
    """Residual quantiles of the rows the engine constants were fitted on (see `fit_engines`)."""
    import yaml

    return yaml.safe_load(INTERVALS.read_text())["quantiles"]


def _known_models() -> frozenset[str]:
    """Models whose published runs gave residuals."""
    import yaml

    return frozenset(yaml.safe_load(INTERVALS.read_text()).get("models", ()))


def predictions(found: Sequence[Outcome], quantiles: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One labelled record per row and metric; latencies in ms, rates per second."""
    records = []
    known = _known_models()
    for outcome in found:
        row = outcome.row
        if outcome.reason:
            continue
        engine = resolve_engine(row.text("engine"), row.text("engine_version"), row.text("measured_date")).key
        device, model = resolve_device(row.gpu), resolve_model(row.model)
        biased = "inference-perf" in row.text("dataset")  # its gaps are over re-tokenised output, several events per token
        for metric in metrics_of(row):
            if (predicted := outcome.figures.get(metric)) is None:
                continue
            trust = "fitted" if device.fitted and fit_of(engine) else "prior"
            widening = 1.0 if trust == "fitted" else PRIOR_WIDENING
            stranger = bool(known) and model.name not in known
            name = load_engine(engine).name
            low, high = interval(
                quantiles, row.load_mode, metric, predicted, widening, engine=name, trust=trust, stranger=stranger
            )
            records.append(
                {
                    "row_id": row.row_id,
                    "metric": metric,
                    "measured": row.measured.get(metric),
                    "predicted": predicted,
                    "low": low,
                    "high": high,
                    "source": row.source,
                    "fitted": bool(fit_of(engine)),
                    "load_mode": row.load_mode,
                    "device": device.name,
                    "model": model.name.rpartition("/")[2],
                    "engine": name,
                    "trust": trust,
                    "scored": row.scored and not (biased and metric.startswith("itl")),
                }
            )
    return records


def _sources(found: Sequence[Outcome], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per source: its rows, how many were scored, too ambiguous to score or excluded, and the commonest reasons."""
    scored = {record["row_id"] for record in records if record["scored"]}
    lines = []
    for source in sorted({outcome.row.source for outcome in found}):
        own = [outcome for outcome in found if outcome.row.source == source]
        reasons = Counter(outcome.reason for outcome in own if outcome.reason)
        lines.append(
            {
                "source": source,
                "rows": len(own),
                "scored": sum(outcome.row.row_id in scored for outcome in own),
                "unscored": sum(not outcome.reason and outcome.row.row_id not in scored for outcome in own),
                "excluded": sum(reasons.values()),
                "why": "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3)),
            }
        )
    return lines


def summary(rows: Sequence[MeasuredRow], found: Sequence[Outcome], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, the reasons of exclusion, and error figures over all and per source, load mode, device, model and engine."""
    scored = [record for record in records if record["scored"]]
    reasons = Counter(outcome.reason for outcome in found if outcome.reason)
    by_metric = grouped(scored, "load_mode", "metric")
    return {
        "rows": len(rows),
        "simulated": sum(not outcome.reason for outcome in found),
        "excluded": sum(reasons.values()),
        "unscored": len({record["row_id"] for record in records if not record["scored"]}),
        "excluded_reasons": [{"reason": reason, "count": count} for reason, count in reasons.most_common()],
        "overall": error_figures(scored),
        "by_metric": by_metric,
        "left_out": beside(by_metric, shipped_table()),
        "coverage": grouped(scored, "trust", "load_mode"),
        "sources": _sources(found, records),
        "by_source": grouped(scored, "source", "load_mode", "metric"),
        "by_device": grouped(scored, "device", "load_mode", "metric"),
        "by_model": grouped(scored, "model", "load_mode", "metric"),
        "by_engine": grouped(scored, "engine", "load_mode", "metric"),
    }


def validate_serving(
    paths: Sequence[str | Path],
    *,
    core: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Predict every row of these files and compare with what was measured.

    Args:
        paths: files of measured rows.
        core: only rows the file marks as core (one node, dense Llama family, well described).
        limit: at most this many rows, spread evenly over the files.
        workers: processes; one per core where None.
        progress: called after each row.

    Returns:
        {rows, excluded, summary}: `rows` one {row_id, metric, measured or None, predicted, low, high, source, fitted} per
        metric, `excluded` one {row_id, reason} per row out of reach.

    Raises:
        InputError: a file is malformed, nothing is left to predict, or a row id appears in two files.
    """
    rows: list[MeasuredRow] = []
    seen: dict[str, str] = {}
    for path in paths:
        for row in read_rows(path):
            if row.row_id in seen:
                raise InputError(path, "row_id", row.row_id, f"is also in {seen[row.row_id]}")
            seen[row.row_id] = str(path)
            if not core or row.flags.get("core", False):
                rows.append(row)
    if not rows:
        raise InputError(", ".join(map(str, paths)), "core", True, "no row is marked as core")
    if limit is not None:
        if limit < 1:
            raise InputError("validate serving", "limit", limit, "must be at least 1")
        rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int))]
    found = outcomes(rows, workers=workers, progress=progress)
    records = predictions(found, _intervals())
    return {
        "rows": [{key: record[key] for key in KEYS} for record in records],
        "excluded": [{"row_id": outcome.row.row_id, "reason": outcome.reason} for outcome in found if outcome.reason],
        "summary": summary(rows, found, records),
    }


def summary_tables(result: Mapping[str, Any], *, most_rows: int = 40) -> list[tuple[str, list[dict[str, Any]]]]:
    """Titled tables for people: rows (where there are few), errors per group, and what was excluded and why."""
    counts = result["summary"]
    tables: list[tuple[str, list[dict[str, Any]]]] = []
    if 0 < len(result["rows"]) <= most_rows:
        tables.append((f"{len(result['rows'])} predictions", [_shown(row) for row in result["rows"]]))
    for label in ("metric", "source", "device", "model"):
        if lines := counts[f"by_{label}"]:
            tables.append((f"errors by {label}, in %; scored rows of quality A or B", [_percents(line) for line in lines]))
    if lines := counts["left_out"]:
        title = (
            "mean errors with constants fitted on all rows and, on a spread of them, refitted without the row's own group, in %"
        )
        tables.append((title, [_left_out_shown(line) for line in lines]))
    tables.append(("rows by source", counts["sources"]))
    tables.append(
        (
            f"{counts['rows']} rows: {counts['simulated']} simulated ({counts['unscored']} of them unfit to score), "
            f"{counts['excluded']} excluded",
            counts["excluded_reasons"],
        )
    )
    return tables


def _left_out_shown(line: Mapping[str, Any]) -> dict[str, Any]:
    errors = {
        name.replace("mean_abs_error", "these rows").replace("left_out_fitted", "spread, fitted").replace("_", " "): value
        for name, value in line.items()
        if name.startswith(("mean_abs", "without", "left_out_fitted"))
    }
    labels = {"load_mode": line["load_mode"], "metric": line["metric"], "n": line["n"]}
    shown = {name: "-" if value is None else f"{100 * value:.1f}" for name, value in errors.items()}
    return labels | shown | {"values in the spread": line["left_out_rows"]}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    measured = row["measured"]
    return {
        "row": row["row_id"],
        "metric": row["metric"],
        "measured": "-" if measured is None else measured,
        "predicted": row["predicted"],
        "interval": f"{row['low']:.4g} .. {row['high']:.4g}",
        "error %": f"{100 * (row['predicted'] / measured - 1):+.1f}" if measured else "-",
        "inside": "-" if measured is None else row["low"] <= measured <= row["high"],
    }


def _percents(line: Mapping[str, Any]) -> dict[str, Any]:
    names = {"mean_abs_error": "mean", "median_abs_error": "median", "p90_abs_error": "p90", "bias": "bias"}
    labels = {key: value for key, value in line.items() if isinstance(value, str)}
    errors = {short: f"{100 * line[name]:.1f}" for name, short in names.items()}
    return {
        **labels,
        "n": line["n"],
        **errors,
        "in interval": f"{100 * line['coverage']:.0f}",
        "width": f"{100 * line['width']:.0f}",
    }
