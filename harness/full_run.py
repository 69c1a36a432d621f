"""`llmlab report`: run everything once on this machine and hand plain tables to the page.

Sections come in order of need: machine and peaks, components, calibration, a real run beside its prediction, published
measurements, and a capacity plan. A section whose data are absent says so; anything else that goes wrong is an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError

Progress = Callable[[str, int, int], None]
Section = dict[str, Any]

DISAGREEMENTS = Path(__file__).resolve().parent / "oracles" / "disagreements.yaml"
PRESET_WORKLOAD = Path(__file__).resolve().parent.parent / "simulator" / "workload" / "presets" / "azure_conversation.yaml"
MODEL = "meta-llama/Llama-3.1-70B"
GPUS = ("h100", "h200")
SLO = "ttft_p99=2s,tpot_p99=50ms"

CHECK_BUDGET_S = 210.0
PUBLISHED_ROWS = 900
TIMED = (
    "attention.gqa",
    "attention.flash",
    "attention.flash_decoding",
    "layers.rms_norm",
    "layers.softmax",
    "layers.activations",
    "positions.rope",
)
"""Components whose speed the page shows; every component is in the table."""

METRIC_NAMES = {
    "ttft_mean_ms": "Time to first token",
    "tpot_mean_ms": "Time per output token",
    "itl_mean_ms": "Gap between tokens",
    "e2e_mean_ms": "Whole request",
    "out_tok_per_s": "Output tokens per second",
}
LOAD_NAMES = {
    "static_batch": "static batch",
    "closed_loop_concurrency": "closed loop",
    "open_loop_constant_rate": "constant rate",
    "open_loop_poisson": "Poisson arrivals",
    "offline_batch": "offline",
    "burst_all_at_once": "offline",
    "offline_max_throughput": "offline",
    "trace_replay": "replayed requests",
    "closed_loop_concurrency_disagg": "closed loop, disaggregated",
}

DRAWN = ("numba", "torch", "torch (unlocked)", "triton")
"""Implementations whose share of the limit is drawn."""

EXACT_LOADS = {
    "offline_batch": "offline, given requests",
    "burst_all_at_once": "burst",
    "offline_max_throughput": "offline, maximum",
}
"""Where one word for three loads would hide which is meant."""


@dataclass
class Times:
    """Seconds each section took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str) -> Any:
        """Time the enclosed work under this name."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started


def data_folder() -> Path | None:
    """Where the measured data are, or None."""
    named = os.environ.get("LLMLAB_DATA")
    return Path(named) if named and Path(named).is_dir() else None


def machine_section(report: Any) -> Section:
    """Facts of the machine and its measured peaks, from a benchmark report."""
    machine = report.machine
    caches = ", ".join(f"{cache.level} {cache.total_bytes / 2**20:.3g} MiB" for cache in machine.caches)
    facts = [
        {"name": "processor", "value": f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads"},
        {"name": "instruction sets", "value": ", ".join(machine.features)},
        {"name": "caches", "value": caches or "unknown"},
        {"name": "memory", "value": f"{machine.memory_gib} GiB"},
        {"name": "accelerators", "value": ", ".join(one.name for one in machine.accelerators) or "none"},
        {"name": "system", "value": machine.system + (", virtual machine" if machine.virtual else "")},
        {"name": "versions", "value": ", ".join(f"{name} {version}" for name, version in machine.versions.items())},
        {"name": "code paths", "value": "; ".join(f"{name}: {path}" for name, path in machine.code_paths.items())},
    ]
    peaks = []
    for device, one in report.peaks.items():
        for size, rate in one.bandwidth:
            how = f"best of several streams over {size / 2**20:.3g} MiB"
            peaks.append({"name": f"{device} read and write", "value": rate / 1e9, "unit": "GB/s", "how": how})
        for dtype, rate in one.flops.items():
            how = ", ".join(f"{method} {reached / 1e9:.0f}" for method, reached in one.methods.get(dtype, {}).items())
            peaks.append({"name": f"{device} {dtype} arithmetic", "value": rate / 1e9, "unit": "GFLOP/s", "how": how})
    return {"facts": facts, "peaks": peaks}


def check_components(progress: Progress, budget_s: float) -> list[Section]:
    """Check component after component until all are done or the time is spent; one row each."""
    from llmlab.harness.check import run_checks
    from llmlab.harness.listing import listing

    rows, started = [], time.perf_counter()
    listed = sorted(listing(), key=lambda one: one["family"] == "attention")  # the longest last: the time may run out
    for number, one in enumerate(listed):
        progress(f"checking {one['id']}", number, len(listed))
        row = {
            "id": one["id"],
            "kind": one["kind"],
            "twins": ", ".join(one["twins"]),
            "oracle": ", ".join(one["oracle"]),
            "passed": None,
            "failed": None,
            "ok": None,
        }
        if time.perf_counter() - started < budget_s:
            verdicts = run_checks([one["id"]], [name for name in one["twins"] if name != "triton"])
            row["passed"] = sum(verdict.passed for verdict in verdicts)
            row["failed"] = sum(not verdict.passed for verdict in verdicts)
            row["ok"] = not row["failed"]
        rows.append(row)
    return sorted(rows, key=lambda row: row["id"])


def disagreements() -> list[Section]:
    """Where a library or a paper differs from the reference, who is right and which test shows it."""
    import yaml

    return list(yaml.safe_load(DISAGREEMENTS.read_text()))


def components_section(rows: Sequence[Section], report: Any) -> Section:
    """The component table, and the speed of the implementations that passed."""
    from llmlab.harness.timing.bench import best_peer, by_case, doubts_on

    speeds = []
    for group in by_case(report.records):
        for record in group:
            peer_s = best_peer(record, group)
            speed = {
                "op": record.component,
                "shape": record.shape,
                "dtype": record.dtype,
                "case": ", ".join(filter(None, (record.shape, record.dtype))),
                "backend": record.label if record.correct else f"{record.label} (wrong)",
                "fraction": record.fraction,
                "peer": peer_s / record.best_s if peer_s and record.best_s else None,
                "best": record.best_s,
                "median": record.median_s,
                "remarks": "; ".join(doubts_on(record)) if record.correct else record.checked,
            }
            speeds.append(speed)
    twins = [speed for speed in speeds if speed["backend"] in DRAWN and speed["fraction"]]
    seen: set[tuple[str, str]] = set()
    bars = []
    for speed in twins:
        if (speed["op"], speed["backend"]) not in seen:
            seen.add((speed["op"], speed["backend"]))
            label = f"{speed['op'].split('.')[1]}"
            bars.append({"label": label, "backend": speed["backend"], "percent": 100 * speed["fraction"]})
    return {
        "rows": list(rows),
        "speeds": speeds,
        "speeds_missing": "",
        "fractions": bars,
        "remarks": report.remarks(),
        "disagreements": disagreements(),
    }


CURVE_NAMES = {
    "gemm": "matrix products",
    "attention_prefill": "attention, prompts",
    "attention_decode": "attention, decoding",
    "memory": "norms and other element-wise",
}


def calibration_section(progress: Progress, peaks: Any, *, quick: bool) -> Section:
    """Time this machine's operators, fit the curves on half of them, and show the other half."""
    from llmlab.harness.calibration import here
    from llmlab.harness.calibration.fit import fit, groups
    from llmlab.harness.machine import describe

    samples = here.measure_here(here.QUICK if quick else here.FULL, device=peaks.device, progress=progress)
    samples = samples.drop(columns="noisy")
    profile = fit(samples, here.simulator_peaks(describe(), peaks))
    points, rows = [], []
    for group in groups(samples, profile.device):
        curve = profile.curves[group.name]
        chosen = group.test if group.test.any() else group.test == group.test
        columns, measured = group.part(chosen)
        predicted = curve.seconds(group.limits, columns)
        rows.append(
            {
                "operator": group.name.replace("_", " ").replace(".", ", "),
                "n": len(measured),
                "median_error": float(np.median(np.abs(predicted / measured - 1))),
                "p90_error": float(np.quantile(np.abs(predicted / measured - 1), 0.9)),
            }
        )
        if (name := CURVE_NAMES.get(group.kind)) and (group.kind != "memory" or group.name == "memory"):
            pairs = zip((1e3 * measured).tolist(), (1e3 * np.asarray(predicted)).tolist())
            points += [{"operator": name, "measured": one, "predicted": other} for one, other in pairs]
    text = (
        f"{len(samples)} operator calls of small language models were timed here. Curves of few physical parameters "
        "(start-up time, fractions of peak and bandwidth) were fitted on half of the shapes; the errors are on the rest."
    )
    return {"text": text, "points": points, "rows": rows, "profile": profile.to_json()}


def here_section(progress: Progress, *, quick: bool) -> Section:
    """Predict runs of the real engine on this machine, run them, compare."""
    from llmlab.harness.validation.here import validate_here

    return here_tables(validate_here(quick=quick, progress=progress))


def here_tables(result: Mapping[str, Any]) -> Section:
    """Tables and pictures of predicted against real runs."""
    counts = result["summary"]
    rows = [
        {
            "load": f"{row['load']:.0%}",
            "metric": row["metric"],
            **{key: row[key] for key in ("predicted", "low", "high", "measured")},
            "error": row["predicted"] / row["measured"] - 1,
            "inside": row["low"] <= row["measured"] <= row["high"],
            "saturated": "yes" if row["saturated"] else "no",
        }
        for row in result["rows"]
    ]
    pictures = [
        {
            "metric": metric,
            "title": METRIC_NAMES[metric],
            "unit": "tokens/s" if metric == "out_tok_per_s" else "ms",
            "rows": [{**row, "label": f"load {row['load']}"} for row in rows if row["metric"] == metric],
        }
        for metric in ("ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms", "out_tok_per_s")
    ]
    lines = [
        {"metric": line["kind"], **{key: line[key] for key in ("n", "median_abs_error", "mean_abs_error", "bias", "coverage")}}
        for line in counts["below_saturation"]
    ]
    text = (
        f"A Llama of {counts['parameters'] / 1e6:.0f} million parameters served requests like a real trace's on "
        f"{counts['machine']} ({counts['threads']} threads). Loads are parts of the predicted capacity, "
        f"{counts['capacity_requests_per_s']:.2f} requests per second. The same scheduler ran in the simulator and in the "
        "engine; every prediction was made before the first of these runs."
    )
    return {"text": text, "rows": rows, "pictures": [one for one in pictures if one["rows"]], "summary": lines}


def published_section(progress: Progress, limit: int) -> Section:
    """Accuracy on published measurements, a spread of every table: operating points, stages and replayed requests."""
    from llmlab.harness.validation.measured_files import kind_of, validate_files
    from llmlab.harness.validation.rows import read_rows

    folder = data_folder()
    if folder is None or not (folder / "measured").is_dir():
        return {"missing": "published measurements are not here; LLMLAB_DATA names the folder that holds measured/"}
    paths = []
    for path in sorted((folder / "measured").glob("*.csv.gz")):
        try:
            if kind_of(path) != "rows" or read_rows(path):
                paths.append(path)
        except InputError:
            continue  # tables of another kind may lie in the same folder
    if not paths:
        return {"missing": f"no table of measured runs in {folder / 'measured'}"}
    result = validate_files(paths, limit=limit, progress=progress)
    return published_tables(result)


def ratios_section(progress: Progress, *, quick: bool) -> Section:
    """Relative results of published systems, repeated; a quick run does those that take seconds."""
    from llmlab.harness.validation.papers import validate_papers

    rows = validate_papers(("P7", "P13", "P15", "P17") if quick else (), progress)
    held = sum(row["holds"] for row in rows)
    text = (
        "A paper states that one way of serving carries so many times the load of another. Both were built on the same cost "
        "model, differing only in what the paper says differs; nothing is fitted to the factors. "
        f"{held} of {len(rows)} statements hold in sign and order."
    )
    return {"text": text, "rows": rows}


def published_tables(result: Mapping[str, Any]) -> Section:
    """Tables and pictures of a validation against published rows."""
    counts = result["summary"]
    pictures = []
    for metric, unit in (("tpot_mean_ms", "ms"), ("ttft_mean_ms", "ms"), ("e2e_mean_ms", "ms"), ("out_tok_per_s", "tokens/s")):
        rows = [
            {
                "measured": row["measured"],
                "predicted": row["predicted"],
                "group": LOAD_NAMES.get(row["load_mode"], row["load_mode"]),
            }
            for row in result["rows"]
            if row["metric"] == metric and row["measured"] and row["scored"]
        ]
        if rows:
            pictures.append({"metric": metric, "title": METRIC_NAMES[metric], "unit": unit, "rows": rows})
    text = (
        f"{counts['simulated']} of {counts['rows']} published operating points were simulated: deployment and load go in, "
        "latencies and throughput come out. The grey band is ±10 %. An interval is meant to hold 90 % of the measurements. "
        f"{sum(row['fitted'] for row in result['rows'])} of the {len(result['rows'])} values belong to engines whose few host "
        "constants were fitted on rows of these tables, and so were the intervals: read both as in-sample."
    )
    left_out = {(line["load_mode"], line["metric"]): line for line in counts.get("left_out", ())}
    metrics = [
        line
        | {"load": (LOAD_NAMES | EXACT_LOADS).get(line["load_mode"], line["load_mode"])}
        | {
            name: left_out.get((line["load_mode"], line["metric"]), {}).get(name)
            for name in ("without_own_source", "without_own_model", "without_own_device")
        }
        for line in counts["by_metric"]
        if line["metric"] in METRIC_NAMES
    ]
    return {
        "text": text,
        "pictures": pictures,
        "rows": counts["by_source"],
        "by_metric": counts["by_metric"],
        "metrics": metrics,
        "sources": counts.get("sources", []),
        "excluded": counts["excluded_reasons"],
    }


SCHEDULE_SIZES = (4, 8)
"""Ranks and microbatches of the table of schedules: the sizes papers draw."""


def training_section(progress: Progress) -> Section:
    """Pipeline schedules against their closed forms, and predicted training steps against published ones."""
    schedules = schedule_rows()
    folder = data_folder()
    path = folder / "training" / "measured_visible.csv.gz" if folder else None
    if path is None or not path.is_file():
        return {"schedules": schedules, "missing_runs": "published training runs are not here; LLMLAB_DATA names their folder"}
    from llmlab.harness.validation.training import validate_training

    return {"schedules": schedules, **training_tables(validate_training([path], progress=progress))}


def schedule_rows() -> list[Section]:
    """Every pipeline schedule on equal stages: idle part and activations held, replayed and by the formula of its paper."""
    from llmlab.reference.parallel._orders import LOOPED, SCHEDULES
    from llmlab.simulator.training.replay import run_pipeline

    ranks, microbatches = SCHEDULE_SIZES
    rows = []
    for name in SCHEDULES:
        found = run_pipeline(name, ranks, microbatches, 2 if name in LOOPED else 1)[1]
        forms = [one for one in found["peak_activations_closed_form"] if one is not None]
        rows.append(
            {
                "schedule": name,
                "stages": found["stages"],
                "bubble": found["bubble"],
                "bubble_form": found["bubble_closed_form"],
                "peak": max(found["peak_activations"]),
                "peak_form": max(forms) if forms else None,
            }
        )
    return rows


def training_tables(result: Mapping[str, Any]) -> Section:
    """Tables and pictures of predicted against published training steps."""
    counts = result["summary"]
    speeds = [row for row in result["rows"] if row["measured"] and row["metric"] != "mem_gib"]
    pictures = []
    for metric, title, unit in (
        ("iter_time_s", "Seconds per step", "s"),
        ("tokens_per_s_per_gpu", "Tokens per second and device", "tokens/s"),
    ):
        rows = [
            {"measured": row["measured"], "predicted": row["predicted"], "group": row["hardware"].split("-")[0]}
            for row in speeds
            if row["metric"] == metric
        ]
        if rows:
            pictures.append({"metric": metric, "title": title, "unit": unit, "rows": rows})
    fitted = sum(row["fitted"] for row in result["rows"])
    text = (
        f"{len({row['row_id'] for row in result['rows']})} published training runs: model, plan and devices go in, the time "
        f"and the memory of a step come out. {counts['excluded']} more could not be predicted. {fitted} of the "
        f"{len(result['rows'])} values belong to sets on which the constants of their framework were fitted; the second table "
        "leaves each set out of its fit."
    )
    left_out = [{"left_out": name, **figures} for name, figures in counts.get("left_out", {}).items()]
    reasons = [{"reason": reason, "count": count} for reason, count in counts["excluded_reasons"].items()]
    return {
        "text": text,
        "pictures": pictures,
        "rows": [*counts["speed_by_set"], *({**row, "metric": "mem_gib"} for row in counts["memory_by_set"])],
        "left_out": left_out,
        "excluded": reasons,
        "speed": counts["speed"],
        "memory": counts["memory"],
    }


def speed_section(progress: Progress) -> Section:
    """How fast the serving simulator runs here: the readable loop and the compiled one, the same run."""
    from llmlab.harness.timing import simulator

    rows = simulator.table(simulator.run(quick=True, progress=progress))
    return {
        "text": "The same requests on the readable SimPy loop and on the compiled one; both give the same events.",
        "rows": rows,
    }


def plan_section(progress: Progress, slo: str, *, quick: bool) -> Section:
    """The cheapest deployment for a real trace where there is one, else for the shipped workload like it."""
    from llmlab.simulator.serving.plan import plan
    from llmlab.simulator.serving.slo import parse_slo
    from llmlab.simulator.workload.spec import load_workload

    folder = data_folder()
    trace = folder / "traces" / "azure2023_conv.csv.gz" if folder else None
    real = trace is not None and trace.is_file()
    source = trace if real and trace is not None else PRESET_WORKLOAD
    workload = load_workload(source, 0)
    if quick:
        workload = workload.first(min(len(workload), 2000))
    found = plan(MODEL, workload, parse_slo(slo), GPUS, workers=len(os.sched_getaffinity(0)), progress=progress).to_json()
    what = "of an hour of Azure's conversation trace" if real else "drawn like Azure's conversation trace, which is not here"
    chosen = found["chosen"]
    answer = (
        f"The cheapest that keeps it: {chosen['replicas']} replicas of {chosen['tensor_parallel']} {chosen['gpu'].upper()}, "
        f"${chosen['usd_per_hour']:.2f} per hour."
        if chosen
        else "Nothing tried keeps it."
    )
    names = {"gpu": "device", "tensor_parallel": "TP", "replicas": "replicas", "gpus": "devices", "max_num_seqs": "max seqs"}
    names |= {"max_num_batched_tokens": "step tokens", "usd_per_hour": "$ per hour"}
    names |= {"usd_per_million_output_tokens": "$ per M output tokens"}
    columns = [(key, heading, "text" if key == "gpu" else "number") for key, heading in names.items()]
    keys = [key for key in (found["rows"][0] if found["rows"] else {}) if key.endswith("_s")]
    columns += [(key, key.removesuffix("_s").replace("_", " ").upper(), "seconds") for key in keys]
    columns += [("utilization", "busy", "percent"), ("kept", "keeps it", "verdict"), ("mark", "", "text")]
    return {
        "text": f"{MODEL} for {len(workload):,} requests {what}, promising {slo.replace(',', ', ')}. {answer}",
        "fronts": found["fronts"],
        "columns": columns,
        "rows": [row | {"chosen": row["mark"] == "chosen"} for row in found["rows"]],
        "binds": found["binds"],
        "command": found["command"],
        "chosen": chosen,
        "plan": found,
    }


def headlines(sections: Mapping[str, Section]) -> list[dict[str, str]]:
    """The few numbers a reader wants first."""
    tiles = []
    rows = sections["components"].get("rows", [])
    checked = [row for row in rows if row["ok"] is not None]
    if checked:
        agree = sum(row["ok"] for row in checked)
        detail = "with references and oracles"
        tiles.append({"value": f"{agree} of {len(checked)}", "label": "components agree", "detail": detail})
    for line in sections["here"].get("summary", []):
        if line["metric"] == "tpot" and line["n"]:
            label, detail = "median TPOT error, run here", f"{line['n']} values below saturation"
            tiles.append({"value": _percent(line["median_abs_error"]), "label": label, "detail": detail})
    scored = [line for line in sections["published"].get("by_metric", []) if line["metric"] == "tpot_mean_ms"]
    if scored:
        loads = {"static_batch": "static", "closed_loop_concurrency": "closed loop", "open_loop_constant_rate": "constant rate"}
        kept = [line for line in scored if line["load_mode"] in loads]
        value = " / ".join(_percent(line["median_abs_error"]) for line in kept)
        label = "median TPOT error, published " + " / ".join(loads[line["load_mode"]] for line in kept)
        tiles.append({"value": value, "label": label, "detail": f"{sum(line['n'] for line in kept):,} operating points"})
    if steps := sections.get("training", {}).get("speed"):
        label = "median error, published training steps"
        tiles.append({"value": _percent(steps["median_abs_error"]), "label": label, "detail": f"{steps['n']:,} values"})
    if chosen := sections["plan"].get("chosen"):
        value = f"{chosen['gpus']} × {str(chosen['gpu']).upper()}"
        detail = f"${chosen['usd_per_hour']:.2f} per hour for {MODEL.rpartition('/')[2]}"
        tiles.append({"value": value, "label": "cheapest deployment", "detail": detail})
    return tiles


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def full_run(*, quick: bool = False, slo: str = SLO, progress: Progress = lambda name, done, total: None) -> dict[str, Any]:
    """Run everything on this machine; return what `reports.page.page` lays out, plus the raw results.

    Args:
        quick: fewer rows, shorter loads: about seven minutes on two cores, a cold cache of kernels included.
        slo: the promise of the capacity plan.
        progress: called with (what, done, total).

    Raises:
        InputError: the promise is nonsense (found before anything is run).
    """
    from llmlab.harness.timing import bench
    from llmlab.reference.catalog import components
    from llmlab.simulator.serving.slo import parse_slo

    parse_slo(slo)
    started, times = time.perf_counter(), Times()
    sections: dict[str, Section] = {}
    with times.of("components"):
        rows = check_components(progress, CHECK_BUDGET_S / (3 if quick else 1))
        timed = [name for name in TIMED if name in components()]
        report = bench.run(timed, backends=["numba", "torch"], quick=True, progress=progress)
        sections["machine"] = machine_section(report)
        sections["components"] = components_section(rows, report)
    with times.of("calibration"):
        device = "cuda" if "cuda" in report.peaks else "cpu"
        sections["calibration"] = calibration_section(progress, report.peaks[device], quick=quick)
    with times.of("here"):
        sections["here"] = here_section(progress, quick=quick)
    with times.of("published"):
        sections["published"] = published_section(progress, PUBLISHED_ROWS // (4 if quick else 1))
    with times.of("ratios"):
        sections["ratios"] = ratios_section(progress, quick=quick)
    with times.of("training"):
        sections["training"] = training_section(progress)
    with times.of("simulator"):
        sections["speed"] = speed_section(progress)
    with times.of("plan"):
        sections["plan"] = plan_section(progress, slo, quick=quick)
    machine_facts = report.machine
    wall_s = time.perf_counter() - started
    return {
        "title": "llmlab report",
        "lead": f"{machine_facts.cpu}, {machine_facts.cores} cores, {machine_facts.memory_gib} GiB.",
        "made": f"Made on {time.strftime('%Y-%m-%d')} in {wall_s / 60:.1f} minutes",
        "data_file": "report.json",
        "wall_s": wall_s,
        "seconds": times.seconds,
        "headlines": headlines(sections),
        "sections": sections,
    }
