"""Fit the constants of `simulator/training/frameworks.yaml` on published runs, and say what each fit is worth left out.

Per framework a handful of physical constants, none of them per model or row. Each is drawn a little towards its first guess.
Beside the fitted error stands the error on every set (or, where a framework has one set, every model) when that one was left
out of the fit. Run as `python -m llmlab.harness.validation.fit_training RUNS.csv.gz`; it prints the constants and writes
`framework_constants.yaml` in the simulator and `training_fit.yaml` beside this file.
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
    OutOfReachError,
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
    "fp8_efficiency": (0.5, 2.5),
    "expert_efficiency": (0.2, 1.2),
    "overlap_share.ampere": (0.005, 0.5),
    "overlap_share.hopper": (0.005, 0.5),
    "expert_overlap": (0.01, 0.95),
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
    "megatron-deepspeed-opa-bf16": (("bigscience_176b_prequel",), ("matrix_efficiency.ampere", "handover_s")),
    "megatron-sc21": (
        ("megatron_sc21_t1", "megatron_sc21_t2"),
        ("matrix_efficiency.ampere", "memory_efficiency", "iteration_s", "handover_s", "network_efficiency"),
    ),
    "deepspeed-zero3": (("megatron_sc21_t2",), ("dp_overlap", "network_efficiency", "matrix_efficiency.ampere")),
    "zero-bubble": (("zero_bubble_t4",), ("matrix_efficiency.ampere", "memory_efficiency", "handover_s", "iteration_s")),
    "megatron-2023": (("megascale_t2",), ("matrix_efficiency.ampere", "iteration_s", "handover_s")),
    "megatron-core": (
        ("megatron_h100_weak", "simumax_b200"),
        (
            "matrix_efficiency.hopper",
            "matrix_efficiency.blackwell",
            "tp_overlap",
            "dp_overlap",
            "memory_efficiency",
            "handover_s",
            "overlap_share.hopper",
        ),
    ),
    "megatron-core-moe": (("megatron_moe_zoo",), ("expert_efficiency",)),
    "megatron-core-deepep": (("megatron_moe_zoo",), ("expert_efficiency",)),
    "nemo": (
        ("megatron_bridge",),
        (
            "matrix_efficiency.hopper",
            "fp8_efficiency",
            "tp_overlap",
            "memory_efficiency",
            "attention_efficiency",
            "handover_s",
            "expert_efficiency",
            "expert_overlap",
        ),
    ),
    "nemo-2024": (
        ("mlperf_gpt3",),
        ("matrix_efficiency.hopper", "matrix_efficiency.blackwell", "handover_s", "iteration_s"),
    ),
    "nemo-2023": (("mlperf_gpt3",), ("matrix_efficiency.hopper", "handover_s", "iteration_s")),
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
            "overlap_share.ampere",
        ),
    ),
}
MEMORY_RANGES = {"memory_margin": (1.0, 1.6), "memory_constant_bytes": (2e8, 1.5e10)}
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
    if field == "overlap_share":
        return float(habits.slowed_by(generation))
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

    simplex = np.vstack(
        [guess]
        + [
            guess + np.where(np.arange(len(names)) == i, 0.25 if guess[i] < high[i] - 0.25 else -0.25, 0.0)
            for i in range(len(names))
        ]
    )
    best = minimize(
        loss, guess, method="Nelder-Mead", options={"maxfev": evaluations, "initial_simplex": simplex, "adaptive": True}
    )
    return with_constants(habits, names, np.clip(best.x, low, high))


def settings_of(rows: Sequence[TrainingRow]) -> list[Setting]:
    """Rows that can be predicted and have a measured speed."""
    found = []
    for row in rows:
        try:
            if any(name != "mem_gib" for name in measured_metrics(row)):
                found.append(setting_of(row))
        except (OutOfReachError, InputError):
            continue
    return found


def memory_errors(settings: Sequence[Setting], habits: Any) -> np.ndarray:
    """Logarithm of predicted over measured memory."""
    found = [
        math.log(figures_of(setting, predict(setting, habits))["mem_gib"] / setting.row.stated["mem_gib"])
        for setting in settings
    ]
    return np.array(found)


def fit_memory(settings: Sequence[Setting], habits: Any) -> Any:
    """Margin and constant of memory, and whether gradients are summed in 16 bits, in 32, or in both, by what was measured."""
    from scipy.optimize import minimize

    names = list(MEMORY_RANGES)
    low, high = (np.log([MEMORY_RANGES[name][side] for name in names]) for side in (0, 1))
    best: tuple[float, Any] | None = None
    for gradient_bytes in (2.0, 4.0, 6.0):
        start = replace(habits, gradient_bytes=gradient_bytes)

        def loss(logs: np.ndarray, start: Any = start) -> float:
            errors = memory_errors(settings, with_constants(start, names, np.clip(logs, low, high)))
            return float(np.sqrt(errors**2 + 0.01**2).mean() + np.abs(logs - np.clip(logs, low, high)).sum())

        found = minimize(loss, np.log([1.05, 1.5e9]), method="Nelder-Mead", options={"maxfev": 60})
        if best is None or found.fun < best[0]:
            best = (found.fun, with_constants(start, names, np.clip(found.x, low, high)))
    assert best is not None
    return best[1]


def fit_all(
    rows: Sequence[TrainingRow],
    only: Sequence[str] = (),
    most: int = 120,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Fit every framework; constants, fitted errors, errors left out, and half widths that hold 90 of 100 rows.

    A framework that is like another starts from what was fitted for that one.
    """
    from llmlab.simulator.training.plan import PRESETS, read_frameworks

    kept = dict(known or {})
    order = list(read_frameworks(PRESETS))
    everything = settings_of(rows)
    report: dict[str, Any] = {"constants": {}, "fitted": {}, "left_out": {}, "bands": {}, "fitted_sets": []}
    for name, (sets, constants) in sorted(FITS.items(), key=lambda entry: order.index(entry[0])):
        if only and name not in only:
            continue
        guesses = read_frameworks(PRESETS, {other: found for other, found in kept.items() if other != name})
        mine = [s for s in everything if s.framework == name and s.row.text.get("set") in sets]
        if not mine:
            continue
        used = _thinned(mine, most)
        habits = fit(used, guesses[name], constants)
        errors = np.abs(np.expm1(speed_errors(mine, habits)))
        found = nested(habits, constants)
        report["fitted"][name] = {"n": len(mine), "mean_abs_error": _four(errors.mean())}
        report["fitted_sets"] += [one for one in sets if one not in report["fitted_sets"]]
        left: list[float] = []
        for by in ("set", "model"):
            groups = sorted({s.row.text[by] for s in mine})
            errors_by = []
            for group in groups if len(groups) > 1 else ():
                rest, out = (
                    [s for s in part if (s.row.text[by] == group) is same] for part, same in ((used, False), (mine, True))
                )
                if len(rest) < 4:
                    continue
                fresh = fit(_thinned(rest, 40), guesses[name], constants, 120)
                missed = np.abs(np.expm1(speed_errors(out, fresh))).tolist()
                errors_by += missed
                if by == "set":
                    report["left_out"][f"{name}: {group}"] = {"n": len(out), "mean_abs_error": _four(float(np.mean(missed)))}
            if by == "model" and errors_by:
                report["left_out"][f"{name}: each model"] = {
                    "n": len(errors_by),
                    "mean_abs_error": _four(float(np.mean(errors_by))),
                }
                left = errors_by
        report["bands"][name] = {"speed": _four(np.quantile(np.log1p([*left, *errors]), 0.9))}
        held = [s for s in mine if s.row.stated.get("mem_gib")]
        if len(held) >= 8:
            habits = fit_memory(_thinned(held, 48), habits)
            missed_memory = memory_errors(held, habits)
            found |= {key: _four(getattr(habits, key)) for key in (*MEMORY_RANGES, "gradient_bytes")}
            report["fitted"][f"{name}: memory"] = {
                "n": len(held),
                "mean_abs_error": _four(np.abs(np.expm1(missed_memory)).mean()),
            }
            report["bands"][name]["memory"] = _four(max(0.02, np.quantile(np.abs(missed_memory), 0.9)))
        report["constants"][name] = kept[name] = found
    return report


def nested(habits: Any, names: Sequence[str]) -> dict[str, Any]:
    """Constants by name, those of a device generation in a mapping of their own."""
    found: dict[str, Any] = {}
    for name in names:
        field, _, generation = name.partition(".")
        if generation:
            found.setdefault(field, {})[generation] = _four(value_of(habits, name))
        else:
            found[field] = _four(value_of(habits, name))
    return found


def _four(value: Any) -> float:
    return float(f"{value:.4g}")


def _thinned(settings: Sequence[Setting], most: int) -> list[Setting]:
    """At most so many settings of each set, evenly spread."""
    found: list[Setting] = []
    for name in sorted({s.row.text.get("set", "") for s in settings}):
        mine = [s for s in settings if s.row.text.get("set", "") == name]
        found += [mine[i * len(mine) // min(most, len(mine))] for i in range(min(most, len(mine)))]
    return found


def main(arguments: Sequence[str]) -> int:
    """Fit on the files named (and of the frameworks named, if any), print the constants, write or renew the reports."""
    import yaml

    from llmlab.reference.files import write_atomic
    from llmlab.simulator.training.plan import CONSTANTS

    rows = [row for path in arguments if path.endswith((".csv", ".gz")) for row in read_rows(path)]
    only = [name for name in arguments if not name.endswith((".csv", ".gz"))]
    here = Path(__file__).resolve().parent / "training_fit.yaml"
    before = yaml.safe_load(here.read_text()) if only and here.is_file() else {}
    constants = yaml.safe_load(CONSTANTS.read_text()) if only and CONSTANTS.is_file() else {}
    report = fit_all(rows, only, known=constants)
    print(yaml.safe_dump(report, sort_keys=False))
    for name in only:  # what an earlier fit said of these
        for part in ("fitted", "left_out"):
            before[part] = {key: value for key, value in before.get(part, {}).items() if key.split(":")[0] != name}
    constants |= report.pop("constants")
    sets = before.get("fitted_sets", [])
    report["fitted_sets"] = [*sets, *(one for one in report["fitted_sets"] if one not in sets)]
    for part in ("fitted", "left_out", "bands"):
        report[part] = {**before.get(part, {}), **report[part]}
    note = "# Fitted by harness/validation/fit_training.py on the sets named in harness/validation/training_fit.yaml.\n"
    write_atomic(CONSTANTS, note + yaml.safe_dump(constants, sort_keys=False))
    write_atomic(here, yaml.safe_dump(report, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
