"""Fits the few host constants of each serving engine on published rows, and the intervals on what is left over.

    python -m llmlab.harness.validation.fit_engines FOLDER      FOLDER holds the tables of measured rows
    ... FOLDER --intervals-only                                 renew the intervals
    ... FOLDER --leave-out source --leave-out model --leave-out device    renew the errors on rows a fit has not seen

Per engine at most nine constants are fitted, the same for every model, device, parallelism and load. Rows are chosen evenly
over (model, device, parallelism, dtype) so that a large table does not outvote a small one; the loss is robust (soft L1 on
log(predicted / measured)). What the constants leave over gives the prediction intervals: quantiles of measured / predicted
per metric and load mode, over all rows, with the coverage each source would have had from the other sources' residuals alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation.intervals import interval, interval_table, metric_kind
from llmlab.harness.validation.left_out import GROUPS, METRICS, left_out, log_errors, responses, table_file
from llmlab.harness.validation.left_out_table import LEFT_OUT
from llmlab.harness.validation.resolve import (
    Unsimulated,
    resolve_device,
    resolve_engine,
    resolve_model,
    resolve_weight_dtype,
)
from llmlab.harness.validation.rows import MeasuredRow, read_rows
from llmlab.harness.validation.serving import INTERVALS, Outcome, outcomes, predict, predictions, weight_of
from llmlab.reference.errors import InputError
from llmlab.reference.files import write_atomic
from llmlab.simulator.cost import engine as engine_module
from llmlab.simulator.cost.engine import EngineModel, load_engine
from llmlab.simulator.hardware.profile import PRIOR_WIDENING

ENGINES_FILE = Path(engine_module.__file__).resolve().parent / "engines.yaml"
FITTED_METRICS = ("ttft_mean_ms", "ttft_p50_ms", "tpot_mean_ms", "e2e_mean_ms", "out_tok_per_s")
FREE: Mapping[str, tuple[str, ...]] = {
    "vllm": ("host_step_s", "host_request_step_s", "host_request_s"),
    "vllm-v0": ("host_step_s", "host_request_step_s"),
    "vllm-2023": ("host_step_s", "launch_s"),
    "sglang": ("host_step_s", "host_request_step_s"),
    "trtllm": (
        "host_request_step_s",
        "host_request_s",
        "kernel_gap_s",
        "collective_gap_s",
        "decode_key_core_s",
        "decode_query_core_s",
        "elementwise_share",
        "sustained_compute",
        "decode_bandwidth",
    ),
    "trtllm-v1": ("host_step_s", "host_request_step_s", "host_request_s"),
    "nim": ("host_request_step_s", "kernel_gap_s", "collective_gap_s", "decode_key_core_s", "host_request_s"),
    "turbomind": ("host_step_s", "host_request_step_s", "host_request_s"),
}
BOUNDS = {
    "host_step_s": (1e-6, 60e-3),
    "host_request_step_s": (1e-8, 1e-3),
    "host_request_s": (1e-5, 100e-3),
    "launch_s": (5e-7, 60e-6),
    "kernel_gap_s": (1e-8, 10e-6),
    "collective_gap_s": (1e-8, 60e-6),
    "decode_key_core_s": (1e-9, 2e-7),
    "elementwise_share": (0.2, 1.5),
    "decode_query_core_s": (1e-9, 5e-8),
    "sustained_compute": (0.6, 1.0),
    "decode_bandwidth": (0.5, 0.98),
}
FITTED_MODES = ("static_batch", "closed_loop_concurrency", "open_loop_constant_rate")
"""Loads without a queue of their own making: what they take is what steps take."""
ROWS_PER_GROUP = 4
HEAVIEST = 1e5
HEAVIEST_OPEN = 8e5
"""Rows whose load holds more tokens than this are left to the check: they would take most of the fit's time."""


def usable(rows: Sequence[MeasuredRow]) -> dict[str, list[MeasuredRow]]:
    """Rows worth fitting on, by engine: unambiguous, on a device whose curves were measured, with a fitted metric."""
    found: dict[str, list[MeasuredRow]] = {}
    for row in rows:
        try:
            key = load_engine(
                resolve_engine(row.text("engine"), row.text("engine_version"), row.text("measured_date")).key
            ).name
            steady = row.load_mode in FITTED_MODES and not row.flags.get("moe", False)
            if steady and row.scored and resolve_device(row.gpu).fitted and set(row.measured) & set(FITTED_METRICS):
                found.setdefault(key, []).append(row)
        except Unsimulated:
            continue
    return found


def chosen(rows: Sequence[MeasuredRow], per_group: int = ROWS_PER_GROUP) -> list[MeasuredRow]:
    """The same number of rows of every (model, device, parallelism, dtype, load mode), spread from light to heavy."""
    groups: dict[tuple[Any, ...], list[MeasuredRow]] = {}
    for row in rows:
        if weight_of(row) <= (HEAVIEST_OPEN if row.load_mode.startswith("open_loop") else HEAVIEST):
            dtype = resolve_weight_dtype(row.text("weight_dtype"), row.model)
            groups.setdefault((row.model, row.gpu, row.count("tp"), dtype, row.load_mode), []).append(row)
    picked = []
    for group in groups.values():
        group.sort(key=lambda row: (weight_of(row), row.row_id))
        picked += [group[i] for i in sorted(set(np.linspace(0, len(group) - 1, per_group).round().astype(int)))]
    return picked


def _log_ratios(task: tuple[MeasuredRow, str, EngineModel]) -> list[float]:
    row, key, engine = task
    try:
        figures = predict(row, {key: engine})
    except Unsimulated:
        return []
    return [
        float(np.log(figures[metric] / row.measured[metric]))
        for metric in FITTED_METRICS
        if row.measured.get(metric, 0) > 0 and figures.get(metric, 0) > 0
    ]


def fit(key: str, rows: Sequence[MeasuredRow], pool: ProcessPoolExecutor) -> tuple[EngineModel, dict[str, Any]]:
    """Fit one engine's free constants; return it and the provenance."""
    from scipy.optimize import least_squares

    start, free = load_engine(key), FREE[key]
    facts = {resolve_engine(row.text("engine"), row.text("engine_version"), row.text("measured_date")).key for row in rows}
    (facts_key,) = facts

    def engine_of(x: np.ndarray) -> EngineModel:
        return start.with_constants(**{name: float(np.exp(value)) for name, value in zip(free, x)})

    def residuals(x: np.ndarray) -> np.ndarray:
        engine = engine_of(x)
        return np.concatenate(list(pool.map(_log_ratios, [(row, facts_key, engine) for row in rows])))

    low, high = (np.log([BOUNDS[name][side] for name in free]) for side in (0, 1))
    first = np.clip(np.log([max(getattr(start, name), BOUNDS[name][0]) for name in free]), low + 1e-6, high - 1e-6)
    found = least_squares(
        residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.1, diff_step=0.05, xtol=2e-3, ftol=1e-3, max_nfev=4
    )
    engine = engine_of(found.x)
    left = residuals(found.x)
    provenance = {
        "constants": list(free),
        "sources": sorted({row.source for row in rows}),
        "rows": len(rows),
        "median_abs_log_error": round(float(np.median(np.abs(left))), 4),
        "before": round(float(np.median(np.abs(residuals(first)))), 4),
    }
    return engine, provenance


def coverage_without(records: Sequence[Mapping[str, Any]], by: str = "source") -> list[dict[str, Any]]:
    """Per source: how many of its values the intervals of the other sources' residuals would have held."""
    table = []
    for source in sorted({record[by] for record in records}):
        own = [record for record in records if record[by] == source and record["measured"]]
        others = [record for record in records if record[by] != source]
        if not others or not own:
            continue
        quantiles = interval_table(others)
        inside = []
        for record in own:
            widening = 1.0 if record["trust"] == "fitted" else PRIOR_WIDENING
            labels = {"engine": record["engine"], "trust": record["trust"]}
            low, high = interval(quantiles, record["load_mode"], record["metric"], record["predicted"], widening, **labels)
            inside.append(low <= record["measured"] <= high)
        table.append({by: source, "values": len(own), "coverage": round(float(np.mean(inside)), 3)})
    return table


def interval_file(found: Sequence[Outcome]) -> str:
    """The YAML of the interval quantiles over all scored rows."""
    import yaml

    records = [record for record in predictions(found, {"any": (0.5, 2.0)}) if record["scored"] and record["measured"]]
    quantiles = {key: [round(low, 4), round(high, 4)] for key, (low, high) in interval_table(records).items()}
    counts: dict[str, int] = {}
    for record in records:
        key = f"{record['load_mode']}/{metric_kind(record['metric'])}"
        counts[key] = counts.get(key, 0) + 1
    content = {
        "quantiles": quantiles,
        "values": dict(sorted(counts.items())),
        "models": sorted(
            {resolve_model(outcome.row.model).name for outcome in found if outcome.row.scored and outcome.figures}
        ),
        "without_own_source": coverage_without(records),
    }
    return (
        "# Quantiles of measured / predicted over published rows, per load mode and kind of metric, per trust (engine and\n"
        "# device fitted, or one of them a prior) and per engine where rows are many; written by\n"
        "# harness/validation/fit_engines.py.\n"
        "# `without_own_source` is the coverage a source has from the others alone; `models` gave residuals.\n"
        + yaml.safe_dump(content, sort_keys=True, default_flow_style=None, width=120)
    )


def engines_file(fitted: Mapping[str, tuple[EngineModel, Mapping[str, Any]]], path: Path = ENGINES_FILE) -> str:
    """The engines' YAML with fitted constants in place of the old ones; comments at its head are kept."""
    import yaml

    text = path.read_text()
    head = text[: text.index("\n- name:") + 1]
    defaults = asdict(EngineModel())
    parts = []
    for record in yaml.safe_load(text):
        if found := fitted.get(record["name"]):
            engine, provenance = found
            record |= {name: float(f"{getattr(engine, name):.3g}") for name in provenance["constants"]}
            record["fit"] = dict(provenance)
        ordered = {key: record[key] for key in ("name", "aliases", *defaults, "fit") if key in record}
        parts.append(yaml.safe_dump([ordered], sort_keys=False, default_flow_style=False, width=120))
    return head + "\n".join(parts)


def spread(rows: Sequence[MeasuredRow], per_engine: int) -> list[MeasuredRow]:
    """At most so many rows of every engine, of every model, device, parallelism, dtype and load mode in turn."""
    by_engine: dict[str, list[MeasuredRow]] = {}
    for row in rows:
        try:
            key = resolve_engine(row.text("engine"), row.text("engine_version"), row.text("measured_date")).key
            resolve_device(row.gpu), resolve_model(row.model), resolve_weight_dtype(row.text("weight_dtype"), row.model)
        except Unsimulated:
            continue
        if row.scored and set(row.measured) & set(METRICS):
            by_engine.setdefault(load_engine(key).name, []).append(row)
    found: list[MeasuredRow] = []
    for own in by_engine.values():
        picked = next(
            (few for per_group in range(ROWS_PER_GROUP, 0, -1) if len(few := chosen(own, per_group)) <= per_engine),
            chosen(own, 1),
        )
        places = np.unique(np.linspace(0, len(picked) - 1, min(per_engine, len(picked))).round().astype(int))
        found += [picked[i] for i in places]
    return found


def read_folder(folder: Path) -> list[MeasuredRow]:
    """The rows of every table of operating points in a folder; tables of another kind are passed over."""
    rows: list[MeasuredRow] = []
    for path in sorted(folder.glob("*.csv*")):
        try:
            rows += read_rows(path)
        except InputError:
            continue
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit from the command line; write the shipped files in place and print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of measured rows (*.csv, *.csv.gz)")
    parser.add_argument("--engine", action="append", choices=list(FREE), help="fit only these engines")
    parser.add_argument("--intervals-only", action="store_true", help="keep the constants, renew the intervals")
    parser.add_argument("--leave-out", action="append", choices=GROUPS, help="renew the table of leave-one-out errors")
    parser.add_argument("--rows", type=int, default=160, help="rows per engine for --leave-out")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    asked = parser.parse_args(arguments)
    rows = read_folder(asked.folder)
    if asked.intervals_only:
        scored = [row for row in rows if row.measured and row.scored and weight_of(row) <= HEAVIEST_OPEN]
        write_atomic(INTERVALS, interval_file(outcomes(scored, workers=asked.workers)))
        return 0
    with ProcessPoolExecutor(asked.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        if asked.leave_out:
            picked = spread(rows, asked.rows)
            found = responses(picked, lambda jobs: list(pool.map(log_errors, jobs, chunksize=8)))
            by_group = {by: left_out(found, by) for by in GROUPS if by in asked.leave_out}
            write_atomic(LEFT_OUT, table_file(by_group, len(found), date.today().isoformat()))
            return 0
        by_engine, fitted = usable(rows), {}
        for key in asked.engine or [key for key in FREE if key in by_engine]:
            fitted[key] = fit(key, chosen(by_engine[key]), pool)
            constants = {name: f"{getattr(fitted[key][0], name):.3g}" for name in FREE[key]}
            print(key, constants, fitted[key][1], file=sys.stderr)
    write_atomic(ENGINES_FILE, engines_file(fitted))
    print("written; run again with --intervals-only, which reads the new constants", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
