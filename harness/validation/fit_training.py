"""Fit the constants of `simulator/training/frameworks.yaml` on published runs, and say what each fit is worth left out.

Per framework a handful of physical constants, none of them per model or row. Each is drawn a little towards its first guess.
Beside the fitted error stands the error on every set (or, where a framework has one set, every model) when that one was left
out of the fit. Run as `python -m llmlab.harness.validation.fit_training RUNS.csv.gz`; it prints the constants and writes
`training_fit.yaml` beside this file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation.training import (
    OutOfReach,
    Setting,
    TrainingRow,
    figures_of,
    measured_metrics,
    predict,
    read_rows,
    setting_of,
)
from llmlab.reference.errors import InputError

RANGES: Mapping[str, tuple[float, float]] = {
    "matrix_efficiency.ampere": (0.5, 1.1),
    "matrix_efficiency.hopper": (0.4, 1.1),
    "matrix_efficiency.blackwell": (0.3, 1.1),
    "matrix_efficiency.volta": (0.2, 1.1),
    "memory_efficiency": (0.3, 1.0),
    "attention_efficiency": (0.1, 0.8),
    "launch_s": (1e-6, 2e-4),
    "collective_launch_s": (1e-6, 1e-3),
    "iteration_s": (1e-3, 3.0),
    "handover_s": (1e-5, 2e-2),
    "network_efficiency": (0.03, 1.0),
    "dp_overlap": (0.01, 1.0),
    "tp_overlap": (0.01, 0.95),
}
"""Lowest and highest value of each constant; all are fitted on a logarithmic scale."""

FITS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "megatron-deepspeed": (
        ("vtrain_single", "vtrain_multi"),
        (
            "matrix_efficiency.ampere",
            "memory_efficiency",
            "launch_s",
            "collective_launch_s",
            "iteration_s",
            "handover_s",
            "network_efficiency",
        ),
    ),
    "megatron-deepspeed-opa": (
        ("bigscience_176b_prequel", "bigscience_bloom"),
        ("matrix_efficiency.ampere", "memory_efficiency", "handover_s", "network_efficiency"),
    ),
    "megatron-sc21": (
        ("megatron_sc21_t1", "megatron_sc21_t2"),
        ("matrix_efficiency.ampere", "memory_efficiency", "iteration_s", "handover_s", "network_efficiency"),
    ),
    "deepspeed-zero3": (("megatron_sc21_t2",), ("dp_overlap", "network_efficiency", "matrix_efficiency.ampere")),
    "zero-bubble": (("zero_bubble_t4",), ("matrix_efficiency.ampere", "memory_efficiency", "handover_s", "iteration_s")),
    "megatron": (("megascale_t2",), ("matrix_efficiency.ampere", "iteration_s", "handover_s")),
    "megatron-core": (
        ("megatron_h100_weak", "simumax_b200"),
        ("matrix_efficiency.hopper", "matrix_efficiency.blackwell", "tp_overlap", "dp_overlap", "memory_efficiency", "handover_s"),
    ),
    "llm-foundry": (
        ("llm_foundry",),
        (
            "matrix_efficiency.ampere",
            "memory_efficiency",
            "attention_efficiency",
            "launch_s",
            "dp_overlap",
            "network_efficiency",
            "iteration_s",
        ),
    ),
}
PULL = 0.02
"""Weight of a constant's logarithmic distance from its first guess against the mean error."""


def with_constants(habits: Any, names: Sequence[str], logs: Sequence[float]) -> Any:
    """A framework with these constants, given by their logarithms."""
    changes: dict[str, Any] = {}
    for name, log in zip(names, logs):
        field, _, generation = name.partition(".")
        if generation:
            known = changes.get(field) or dict(getattr(habits, field) or {})
            changes[field] = known | {generation: math.exp(log)}
        else:
            changes[field] = math.exp(log)
    return replace(habits, **changes)


def value_of(habits: Any, name: str) -> float:
    """A constant's present value."""
    field, _, generation = name.partition(".")
    found = getattr(habits, field)
    return float(habits.efficiency(generation) if generation else found)


def speed_errors(settings: Sequence[Setting], habits: Any) -> np.ndarray:
    """Logarithm of predicted over measured speed of every setting (its first speed metric)."""
    errors = []
    for setting in settings:
        metric = next(name for name in measured_metrics(setting.row) if name != "mem_gib")
        sign = 1.0 if metric == "iter_time_s" else -1.0
        predicted = figures_of(setting, predict(setting, habits))[metric]
        errors.append(sign * math.log(predicted / setting.row.stated[metric]))
    return np.array(errors)


def fit(settings: Sequence[Setting], habits: Any, names: Sequence[str], evaluations: int = 400) -> Any:
    """The framework with its constants fitted to these runs: smallest mean of a rounded absolute error."""
    from scipy.optimize import minimize

    guess = np.log([np.clip(value_of(habits, name), *RANGES[name]) for name in names])
    low, high = (np.log([RANGES[name][side] for name in names]) for side in (0, 1))
    sets = [setting.row.text.get("set", "") for setting in settings]
    weights = np.array([1.0 / math.sqrt(sets.count(name)) for name in sets])
    weights /= weights.sum()

    def loss(logs: np.ndarray) -> float:
        errors = speed_errors(settings, with_constants(habits, names, np.clip(logs, low, high)))
        away = np.abs(logs - np.clip(logs, low, high)).sum()
        return float((weights * np.sqrt(errors**2 + 0.01**2)).sum() + PULL * 0.1 * ((logs - guess) ** 2).mean() + away)

    simplex = np.vstack([guess] + [guess + np.where(np.arange(len(names)) == i, 0.25 if guess[i] < high[i] - 0.25 else -0.25, 0.0) for i in range(len(names))])
    best = minimize(loss, guess, method="Nelder-Mead", options={"maxfev": evaluations, "initial_simplex": simplex, "adaptive": True})
    return with_constants(habits, names, np.clip(best.x, low, high))


def settings_of(rows: Sequence[TrainingRow]) -> list[Setting]:
    """Rows that can be predicted and have a measured speed."""
    found = []
    for row in rows:
        try:
            if any(name != "mem_gib" for name in measured_metrics(row)):
                found.append(setting_of(row))
        except (OutOfReach, InputError):
            continue
    return found


def fit_all(rows: Sequence[TrainingRow], only: Sequence[str] = (), most: int = 160) -> dict[str, Any]:
    """Fit every framework; constants, fitted errors, errors left out, and half widths that hold 90 of 100 rows."""
    from llmlab.simulator.training.plan import framework

    everything = settings_of(rows)
    report: dict[str, Any] = {"constants": {}, "fitted": {}, "left_out": {}, "bands": {}, "fitted_sets": []}
    for name, (sets, constants) in FITS.items():
        if only and name not in only:
            continue
        mine = [s for s in everything if s.framework == name and s.row.text.get("set") in sets]
        if not mine:
            continue
        used = _thinned(mine, most)
        habits = fit(used, framework(name), constants)
        errors = np.abs(np.expm1(speed_errors(mine, habits)))
        report["constants"][name] = {key: float(f"{value_of(habits, key):.4g}") for key in constants}
        report["fitted"][name] = {"n": len(mine), "mean_abs_error": round(float(errors.mean()), 4)}
        report["fitted_sets"] += [one for one in sets if one not in report["fitted_sets"]]
        by = "set" if len({s.row.text["set"] for s in mine}) > 1 else "model"
        left: list[float] = []
        for group in sorted({s.row.text[by] for s in mine}):
            rest = [s for s in used if s.row.text[by] != group]
            out = [s for s in mine if s.row.text[by] == group]
            if len(rest) < 3:
                continue
            found = np.abs(np.expm1(speed_errors(out, fit(rest, framework(name), constants, 200))))
            left += found.tolist()
            if by == "set":
                report["left_out"][f"{name}: {group}"] = {"n": len(out), "mean_abs_error": round(float(found.mean()), 4)}
        if by == "model" and left:
            report["left_out"][f"{name}: each model"] = {"n": len(left), "mean_abs_error": round(float(np.mean(left)), 4)}
        report["bands"][name] = {"speed": round(float(np.quantile(np.log1p(left or errors.tolist()), 0.9)), 4)}
    return report


def _thinned(settings: Sequence[Setting], most: int) -> list[Setting]:
    """At most so many settings of each set, evenly spread."""
    found: list[Setting] = []
    for name in sorted({s.row.text.get("set", "") for s in settings}):
        mine = [s for s in settings if s.row.text.get("set", "") == name]
        found += [mine[i * len(mine) // min(most, len(mine))] for i in range(min(most, len(mine)))]
    return found


def main(arguments: Sequence[str]) -> int:
    """Fit on the files named, print the constants, write the report."""
    import yaml

    from llmlab.reference.files import write_atomic

    rows = [row for path in arguments if path.endswith((".csv", ".gz")) for row in read_rows(path)]
    only = [name for name in arguments if not name.endswith((".csv", ".gz"))]
    report = fit_all(rows, only)
    print(yaml.safe_dump(report, sort_keys=False))
    if not only:
        path = Path(__file__).resolve().parent / "training_fit.yaml"
        kept = yaml.safe_load(path.read_text()) if path.is_file() else {}
        bands = {name: kept.get("bands", {}).get(name, {}) | band for name, band in report["bands"].items()}
        write_atomic(path, yaml.safe_dump({**report, "bands": bands}, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
