"""Sampled scheduler steps of a real engine against the price of the same steps.

A step file has one line per sampled step: `experiment_id`, what the batch held, and `cycle_us`, the time from the start of the
previous step to the start of this one where both were sampled: it is the whole price of the previous step, device and host,
which `step_duration_us` is not (the host is done long before the device). The batch of the previous step stands in
`prev_batch_num_decode_reqs` and `prev_batch_prefill_tokens`; the tokens it attends to follow from the blocks in use.

Steps with the same number of decoding requests, in bins, are one row; its figure is the median cycle.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.harness.validation.perrequest import settings_of
from llmlab.harness.validation.resolve import Unsimulated, resolve_device, resolve_engine, resolve_model
from llmlab.harness.validation.rows import MeasuredRow, numbered_lines
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.engine import EngineModel, load_engine

REQUIRED = (
    "experiment_id",
    "cycle_us",
    "prev_batch_prefill_tokens",
    "prev_batch_num_decode_reqs",
    "kv_usage_gpu_ratio",
    "kv_blocks_total_gpu",
)
BLOCK_TOKENS = 16
BINS = (1, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 192, 256, 384, 512, 1024)
"""Decoding requests: a bin runs from above one number up to the next."""
FEWEST = 5
"""A bin of fewer steps says nothing."""
MOST_PREFILL = 64
"""Steps with more new prompt tokens belong to the warm-up, while nothing is cached; how many prompts they hold is not known."""
TOKENS_PER_PROMPT = 5
"""A cached prompt of the shared-prefix load leaves about this many tokens to compute."""


@dataclass(frozen=True)
class StepBin:
    """Steps with a similar number of decoding requests.

    Attributes:
        decode_requests, prefill_tokens, context_tokens: medians.
        cycle_ms: median measured cycle.
    """

    experiment: str
    low: int
    high: int
    steps: int
    decode_requests: float
    prefill_tokens: float
    context_tokens: float
    cycle_ms: float
    settings: dict[str, Any] = field(default_factory=dict)


def read_steps(path: str | Path) -> dict[str, np.ndarray]:
    """Columns of a step file, lines without a cycle left out; per experiment the arrays (decode, prefill, context, cycle).

    Raises:
        InputError: unreadable, a required column missing, or a cell that is no number.
    """
    path = Path(path)
    found: dict[str, list[list[float]]] = {}
    for number, row in numbered_lines(path, REQUIRED):
        experiment = row["experiment_id"]
        found.setdefault(experiment, [])
        if not row["cycle_us"]:
            continue
        values = []
        for column in REQUIRED[1:]:
            try:
                value = float(row[column])
            except ValueError:
                raise InputError(path, column, row[column], f"is not a number (line {number})") from None
            if not 0 <= value < math.inf:
                raise InputError(path, column, row[column], f"must be finite and not negative (line {number})")
            values.append(value)
        found[experiment].append(values)
    if not found:
        raise InputError(path, "", path.name, "has a header and no rows")
    table = {}
    for experiment, rows in found.items():
        cycle, prefill, decode, usage, blocks = np.array(rows, dtype=float).reshape(-1, 5).T
        table[experiment] = np.stack([decode, prefill, usage * blocks * BLOCK_TOKENS, cycle / 1e3], axis=1)
    return table


def bins(experiment: str, steps: np.ndarray, settings: dict[str, Any]) -> list[StepBin]:
    """Group steps by decoding requests; prefixes that requests share are counted once in the blocks and added back."""
    shared, groups = settings.get("shared_prefix_tokens", 0), settings.get("shared_prefix_groups", 1)
    steps = steps[(steps[:, 1] <= MOST_PREFILL) & (steps[:, 0] >= 1)]
    found = []
    for low, high in pairwise(BINS):
        inside = steps[(steps[:, 0] > low) & (steps[:, 0] <= high)]
        if len(inside) >= FEWEST:
            decode, prefill, context, cycle = np.median(inside, axis=0)
            context += shared * max(0.0, decode - groups)
            found.append(StepBin(experiment, low, high, len(inside), decode, prefill, context, cycle, settings))
    return found


def priced_ms(steps: StepBin, engine: EngineModel) -> float:
    """What the cost model says such a step takes."""
    from llmlab.simulator.cost.batch import BatchShape
    from llmlab.simulator.cost.step import StepCost
    from llmlab.simulator.hardware.profile import load_device
    from llmlab.simulator.model.description import load_model

    settings = steps.settings
    cost = StepCost(
        load_model(resolve_model(settings["model"]).name),
        load_device(resolve_device(settings["gpu"]).name),
        tensor_parallel=settings.get("tp", 1),
        engine=engine,
    )
    decode, prefill = round(steps.decode_requests), round(steps.prefill_tokens)
    each = max(1, round(steps.context_tokens / decode))
    prompts = max(1, round(prefill / TOKENS_PER_PROMPT)) if prefill > 1 else 0
    new = ((max(2, round(prefill / prompts)), each),) * prompts if prompts else ()
    return 1e3 * cost.seconds(BatchShape(new, decode, decode * each, decode + prompts))


def step_rows(path: str | Path) -> list[tuple[MeasuredRow, dict[str, float], str]]:
    """Every bin of a step file as (row with the measured cycle, figures, reason why there are none)."""
    path = Path(path)
    source = re.sub(r"\.csv(\.gz)?$", "", path.name)
    found: list[tuple[MeasuredRow, dict[str, float], str]] = []
    for experiment, steps in read_steps(path).items():
        try:
            settings = settings_of(experiment, {})
            engine = load_engine(resolve_engine(settings["engine"], settings.get("engine_version", "")).key)
        except Unsimulated as reason:
            found.append((_row(path, source, experiment, {}, {}), {}, str(reason)))
            continue
        for step in bins(experiment, steps, settings):
            name = f"{experiment}|decode {step.low + 1}-{step.high}"
            row = _row(path, source, name, settings, {"step_mean_ms": step.cycle_ms})
            found.append((row, {"step_mean_ms": priced_ms(step, engine)}, ""))
    return found


def _row(path: Path, source: str, name: str, settings: dict[str, Any], measured: dict[str, float]) -> MeasuredRow:
    texts = {key: str(settings[key]) for key in ("engine", "engine_version") if key in settings} | {"source": source}
    return MeasuredRow(
        str(path),
        f"{source}/{name}",
        settings.get("model", ""),
        settings.get("gpu", ""),
        "engine_steps",
        texts,
        {},
        {},
        {},
        measured,
    )
