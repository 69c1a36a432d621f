"""Fits vLLM's host constants at the measured load, without simulating: steps at a constant rate have a known shape.

    python -m llmlab.harness.validation.fit_vllm FOLDER      FOLDER holds the stage and step files

A stage at a constant rate runs, by Little's law, rate x E2E requests at once, each attending to its prompt and half its
output; its TPOT is the duration of that step. What the device's curves do not account for is the host's:

    TPOT = device(n, context) + host_step + n host_request_step

Arrivals fall evenly into the running step, so the mean wait is half a step; the request then joins a step `lag` steps later
and has its first token at the end of that one:

    TTFT = (1.5 + lag) TPOT + host_request

Both are robust regressions (soft L1 on relative residuals); every error is also given with the model's own points left out
of the fit. Sampled steps count as stages without a first token.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation.engine_steps import bins, read_steps
from llmlab.harness.validation.perrequest import settings_of
from llmlab.harness.validation.resolve import Unsimulated, resolve_device, resolve_engine, resolve_model
from llmlab.harness.validation.stages import read_stages
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.engine import load_engine

KEY = "vllm-v1"
FIELDS = ("host_step_s", "host_request_step_s", "scheduling_lag_steps", "host_request_s")
LOSS_SCALE = 0.03


@dataclass(frozen=True)
class Point:
    """One measured steady state.

    Attributes:
        device_s: what the device's curves give for its step.
        requests: that the step decodes.
        step_s: measured TPOT or cycle.
        ttft_s: measured mean time to first token, NaN where there is none.
    """

    model: str
    device_s: float
    requests: float
    step_s: float
    ttft_s: float


def _device_s(model: str, gpu: str, tensor_parallel: int, requests: int, context: float, prompts: float) -> float:
    """Seconds the device takes for a step, with `prompts` (below 1 a share of steps) prompts of one cached block's rest."""
    from llmlab.simulator.cost.batch import BatchShape
    from llmlab.simulator.cost.step import StepCost
    from llmlab.simulator.hardware.profile import load_device
    from llmlab.simulator.model.description import load_model

    engine = load_engine(KEY).with_constants(host_step_s=0.0, host_request_step_s=0.0)
    cost = StepCost(
        load_model(resolve_model(model).name),
        load_device(resolve_device(gpu).name),
        tensor_parallel=tensor_parallel,
        engine=engine,
    )
    plain = BatchShape((), requests, round(requests * context), requests)
    mixed = BatchShape(((5, round(context)),), requests, round(requests * context), requests + 1)
    return cost.seconds(plain) + min(1.0, prompts) * (cost.seconds(mixed) - cost.seconds(plain))


def _family(model: str) -> str:
    """A model's name without what does not change its shape.

    >>> _family("codellama/CodeLlama-34b-Instruct-hf"), _family("meta-llama/Llama-2-7b")
    ('codellama-34b', 'llama-2-7b')
    """
    return re.sub(r"-(instruct|hf)(?=-|$)", "", model.rpartition("/")[2].lower())


def stage_points(path: str | Path) -> list[Point]:
    """Points of the scored stages of a stage file that ran under this engine.

    Raises:
        InputError: the file is malformed.
    """
    found = []
    for row in read_stages(path):
        wanted = {"tpot_mean_ms", "ttft_mean_ms", "e2e_mean_ms"} <= set(row.measured)
        rate = row.stated.get("request_rate_rps")
        if "stage" in row.unread or not row.scored or not wanted or not rate or row.text("n_instances"):
            continue
        try:
            if resolve_engine(row.text("engine"), row.text("engine_version")).key != KEY:
                continue
            step_s = row.measured["tpot_mean_ms"] / 1e3
            requests = max(1, round(rate * row.measured["e2e_mean_ms"] / 1e3))
            context = row.stated["isl"] + row.stated["osl"] / 2
            device_s = _device_s(row.model, row.gpu, row.count("tp") or 1, requests, context, rate * step_s)
        except (Unsimulated, InputError):
            continue
        found.append(Point(_family(row.model), device_s, requests, step_s, row.measured["ttft_mean_ms"] / 1e3))
    return found


def sampled_points(path: str | Path) -> list[Point]:
    """Points of a step file, one per bin.

    Raises:
        InputError: the file is malformed.
    """
    found = []
    for experiment, steps in read_steps(path).items():
        try:
            settings = settings_of(experiment, {})
            if resolve_engine(settings["engine"], settings.get("engine_version", "")).key != KEY:
                continue
        except Unsimulated:
            continue
        for one in bins(experiment, steps, settings):
            requests = round(one.decode_requests)
            prompts = 1.0 if one.prefill_tokens > 1 else 0.0
            context = one.context_tokens / requests
            device_s = _device_s(settings["model"], settings["gpu"], settings.get("tp", 1), requests, context, prompts)
            found.append(Point(_family(settings["model"]), device_s, requests, one.cycle_ms / 1e3, float("nan")))
    return found


def _robust(features: np.ndarray, target: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Non-negative coefficients with the least soft-L1 relative error."""
    from scipy.optimize import least_squares

    start = np.maximum(1e-9, np.linalg.lstsq(features / scale[:, None], target / scale, rcond=None)[0])
    size = np.maximum(np.abs(features / scale[:, None]).max(axis=0), 1e-12)
    found = least_squares(
        lambda x: (features @ (x / size) - target) / scale,
        start * size,
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=LOSS_SCALE,
    )
    return np.asarray(found.x / size)


def fit_points(points: Sequence[Point]) -> dict[str, float]:
    """The four constants that answer these points best; every model counts the same."""
    device, requests, step, ttft = (
        np.array([getattr(point, name) for point in points]) for name in ("device_s", "requests", "step_s", "ttft_s")
    )
    names = [point.model for point in points]
    weight = np.sqrt(np.array([len(names) / names.count(name) / len(set(names)) for name in names]))
    host = _robust(np.stack([np.ones(len(points)), requests], axis=1), step - device, step / weight)
    begun = np.isfinite(ttft)
    front = np.full(2, np.nan)
    if begun.any():
        features = np.stack([step[begun], np.ones(begun.sum())], axis=1)
        front = _robust(features, ttft[begun] - 1.5 * step[begun], ttft[begun] / weight[begun])
    return dict(zip(FIELDS, (float(host[0]), float(host[1]), float(front[0]), float(front[1]))))


def errors(points: Sequence[Point], constants: dict[str, float]) -> dict[str, float]:
    """Mean absolute relative error of the step and of the first token at the measured load."""
    step = [
        (point.device_s + constants["host_step_s"] + point.requests * constants["host_request_step_s"]) / point.step_s - 1
        for point in points
    ]
    first = [
        ((1.5 + constants["scheduling_lag_steps"]) * point.step_s + constants["host_request_s"]) / point.ttft_s - 1
        for point in points
        if np.isfinite(point.ttft_s)
    ]
    return {
        "step": float(np.mean(np.abs(step))),
        "ttft": float(np.mean(np.abs(first))) if first else float("nan"),
    }


def _rounded(error: float) -> float | None:
    return round(error, 4) if np.isfinite(error) else None


def left_out(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Per model: the errors with all points in the fit, and with the model's own left out."""
    everything = fit_points(points)
    table = []
    for model in sorted({point.model for point in points}):
        own = [point for point in points if point.model == model]
        others = [point for point in points if point.model != model]
        if not others:
            continue
        fitted, honest = errors(own, everything), errors(own, fit_points(others))
        table.append(
            {
                "model": model,
                "points": len(own),
                "step_fitted": _rounded(fitted["step"]),
                "step_left_out": _rounded(honest["step"]),
                "ttft_fitted": _rounded(fitted["ttft"]),
                "ttft_left_out": _rounded(honest["ttft"]),
            }
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the constants and the errors, fitted and left out."""
    import json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of measured files")
    folder = parser.parse_args(arguments).folder
    points: list[Point] = []
    for path in sorted(folder.glob("*.csv*")):
        from llmlab.harness.validation.measured_files import kind_of

        kind = kind_of(path)
        points += stage_points(path) if kind == "stages" else sampled_points(path) if kind == "steps" else []
    if len(points) < len(FIELDS):
        raise InputError(folder, "points", len(points), f"need at least {len(FIELDS)} steady states to fit")
    fitted = fit_points(points)
    overall = errors(points, fitted)
    print(json.dumps({"points": len(points), "constants": fitted, "errors": overall, "models": left_out(points)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
