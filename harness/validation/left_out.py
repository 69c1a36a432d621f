"""Errors on what a fit has not seen: constants refitted without a source, model or device, then asked for it.

Refitting an engine for every group by simulation would take days. Each row is simulated at the shipped constants and once
more per constant, moved a little; that gives its figures and their slopes in the logarithm of the constants. A refit without
a group is then a robust linear regression on the other rows (one Gauss-Newton step, soft L1 as in `fit_engines`), held within
a factor of four of the shipped constants, and the group's figures follow from its own slopes. Where no other row is left, the
engine's constants fall back to those of the generic engine, and the rows are simulated with them. A device left out loses
the shares of its peaks that were fitted on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmlab.harness.validation.resolve import Unsimulated, resolve_device, resolve_engine, resolve_model
from llmlab.harness.validation.rows import MeasuredRow
from llmlab.harness.validation.serving import predict
from llmlab.simulator.cost.engine import EngineModel, fit_of, load_engine
from llmlab.simulator.hardware.profile import DeviceProfile, load_device

METRICS = ("ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms", "out_tok_per_s")
GROUPS = ("source", "model", "device")
STEP = 0.1
"""Change of a constant's logarithm that its slope is taken over."""
FARTHEST = float(np.log(4.0))
SOFT = 0.1
FEWEST_OTHERS = 8
"""Fewer other rows than this fit nothing: the generic constants answer."""

Job = tuple[MeasuredRow, str, EngineModel, "DeviceProfile | None"]


@dataclass
class Response:
    """One row under one engine: logarithms of predicted / measured, their slopes, and what generic constants give.

    Attributes:
        errors: per metric, at the shipped constants.
        slopes: per metric, one number per fitted constant.
        generic: per metric, at the generic engine's constants (empty until asked for).
        bare: per metric, without the device's own shares of its peaks (equal to `errors` where it has none).
    """

    row: MeasuredRow
    engine: str
    errors: Mapping[str, float]
    slopes: Mapping[str, np.ndarray] = field(default_factory=dict)
    generic: Mapping[str, float] = field(default_factory=dict)
    bare: Mapping[str, float] = field(default_factory=dict)

    def group(self, by: str) -> str:
        """Its source, model or device."""
        if by == "source":
            return self.row.source
        return resolve_model(self.row.model).name if by == "model" else resolve_device(self.row.gpu).name


def log_errors(job: Job) -> dict[str, float]:
    """ln(predicted / measured) per metric; empty where the row is out of reach."""
    row, key, engine, profile = job
    try:
        figures = predict(row, {key: engine}, profile)
    except Unsimulated:
        return {}
    return {
        metric: float(np.log(figures[metric] / row.measured[metric]))
        for metric in METRICS
        if row.measured.get(metric, 0) > 0 and figures.get(metric, 0) > 0
    }


def fitted_constants(engine: EngineModel) -> tuple[str, ...]:
    """The constants an engine's fit names that are numbers above zero."""
    named = fit_of(engine.name).get("constants", ())
    return tuple(name for name in named if isinstance(getattr(engine, name), float) and getattr(engine, name) > 0)


def unfitted(engine: EngineModel) -> EngineModel:
    """The engine with every fitted constant back at the generic engine's value; how it works is kept."""
    generic = EngineModel()
    names = fitted_constants(engine)
    changes = {name: getattr(generic, name) for name in names}
    for name in ("decode_key_core_s", "decode_query_core_s"):  # zero would switch its own kernel off
        if name in changes:
            changes[name] = getattr(engine, name) / 2.0
    return engine.with_constants(**changes)


def bare_profile(row: MeasuredRow) -> DeviceProfile | None:
    """The row's device without the shares fitted on it; None where it has none."""
    profile = load_device(resolve_device(row.gpu).name)
    plain = replace(profile.device, memory_share=1.0, sustained_share=1.0)
    return None if plain == profile.device else replace(profile, device=plain)


def responses(
    rows: Sequence[MeasuredRow], simulate_all: Callable[[Sequence[Job]], Sequence[dict[str, float]]]
) -> list[Response]:
    """Simulate every row at the shipped constants, at each constant moved, and without its device's shares."""
    found: list[Response] = []
    jobs: list[Job] = []
    keys, engines = [], []
    for row in rows:
        key = resolve_engine(row.text("engine"), row.text("engine_version"), row.text("measured_date")).key
        engine = load_engine(key)
        keys.append(key)
        engines.append(engine)
        jobs.append((row, key, engine, None))
        jobs += [
            (row, key, engine.with_constants(**{name: getattr(engine, name) * float(np.exp(STEP))}), None)
            for name in fitted_constants(engine)
        ]
        jobs.append((row, key, unfitted(engine), None))
        if (bare := bare_profile(row)) is not None:
            jobs.append((row, key, engine, bare))
    answers = iter(simulate_all(jobs))
    for row, engine in zip(rows, engines):
        errors = next(answers)
        moved = [next(answers) for _ in fitted_constants(engine)]
        generic = next(answers)
        unshared = next(answers) if bare_profile(row) is not None else errors
        kept = {metric for metric in errors if all(metric in one for one in (*moved, generic, unshared))}
        if kept:
            slopes = {metric: np.array([(one[metric] - errors[metric]) / STEP for one in moved]) for metric in kept}
            plain = [{metric: one[metric] for metric in kept} for one in (errors, generic, unshared)]
            found.append(Response(row, engine.name, plain[0], slopes, plain[1], plain[2]))
    return found


def refit(others: Sequence[Response]) -> np.ndarray | None:
    """Change of the logarithm of each constant that fits these rows best; None where they are too few."""
    from scipy.optimize import least_squares

    if len(others) < FEWEST_OTHERS:
        return None
    errors = np.array([value for one in others for value in one.errors.values()])
    slopes = np.array([one.slopes[metric] for one in others for metric in one.errors])
    if not slopes.shape[1]:
        return np.zeros(0)
    start = np.zeros(slopes.shape[1])
    solved = least_squares(
        lambda change: errors + slopes @ change,
        start,
        jac=lambda change: slopes,
        bounds=(start - FARTHEST, start + FARTHEST),
        loss="soft_l1",
        f_scale=SOFT,
    )
    return np.asarray(solved.x)


def left_out(found: Sequence[Response], by: str) -> list[dict[str, Any]]:
    """Per row and metric of every engine's groups: the error with the group in the fit and without it.

    Returns:
        Records {group, engine, source, model, device, load_mode, metric, fitted, left_out}, errors as predicted / measured - 1.
    """
    records = []
    for engine in sorted({one.engine for one in found}):
        own = [one for one in found if one.engine == engine]
        for group in sorted({one.group(by) for one in own}):
            inside = [one for one in own if one.group(by) == group]
            others = [one for one in own if one.group(by) != group]
            change = refit(others) if fitted_constants(load_engine(engine)) else np.zeros(0)
            for one in inside:
                for metric, error in one.errors.items():
                    if change is None:
                        without = one.generic[metric]
                    else:
                        without = error + (float(one.slopes[metric] @ change) if len(change) else 0.0)
                        if by == "device":
                            without += one.bare[metric] - error
                    labels = {label: one.group(label) for label in GROUPS}
                    records.append(
                        {
                            "group": group,
                            "engine": engine,
                            **labels,
                            "load_mode": one.row.load_mode,
                            "metric": metric,
                            "fitted": float(np.exp(error) - 1),
                            "left_out": float(np.exp(without) - 1),
                        }
                    )
    return records


def summarized(records: Sequence[Mapping[str, Any]], *labels: str) -> list[dict[str, Any]]:
    """Mean and median absolute error per combination of labels, with the group in the fit and without it."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[label] for label in labels), []).append(record)
    table = []
    for key in sorted(groups):
        errors = {name: np.abs([record[name] for record in groups[key]]) for name in ("fitted", "left_out")}
        table.append(
            dict(zip(labels, key))
            | {"n": len(groups[key])}
            | {name: round(float(values.mean()), 4) for name, values in errors.items()}
            | {f"{name}_median": round(float(np.median(values)), 4) for name, values in errors.items()}
        )
    return table


def table_file(by_group: Mapping[str, Sequence[Mapping[str, Any]]], rows: int, dated: str) -> str:
    """The YAML of leave-one-out errors: over all, and per group left out."""
    import yaml

    content = {
        "dated": dated,
        "rows": rows,
        "overall": {by: summarized(records, "load_mode", "metric") for by, records in by_group.items()},
        "groups": {by: summarized(records, "group", "engine", "load_mode", "metric") for by, records in by_group.items()},
    }
    return (
        "# Mean and median absolute errors with a group of rows in the fit of the engines' constants and without it, over a\n"
        "# spread of the scored rows; written by harness/validation/fit_engines.py --leave-out. left_out.py says how.\n"
        + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=160)
    )
