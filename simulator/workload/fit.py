"""`llmlab workload fit`: a trace becomes a small YAML whose synthetic traffic behaves like it.

Arrivals are Gamma gaps whose rate wanders on two time scales (`synthetic.modulated`); their three parameters are found by the
method of simulated moments: the same random numbers are sent through candidate parameters until the coefficient of variation of
the gaps and the Fano factors at 1, 10 and 60 seconds are those of the trace. Lengths are kept as quantiles with the rank
correlation between prompt and answer; shared prefixes as a common root and a law of which earlier prompt is continued, and how
far. What a fit misses is written beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmlab.reference.errors import InputError
from llmlab.reference.files import write_atomic
from llmlab.simulator.workload import synthetic
from llmlab.simulator.workload.spec import WorkloadSpec, make_workload
from llmlab.simulator.workload.statistics import (
    WINDOWS_S,
    describe,
    fano,
    full_blocks,
    gap_cv,
    lru_hit_fraction,
    reuse_of,
    spearman,
    spread_over_grid,
)
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

SWING_SECONDS = (8.0, 120.0)
"""Correlation times of the two scales on which the rate wanders: among the windows, and beyond the longest."""
REPLICAS, MOST_ARRIVALS = 6, 30_000
"""Synthetic runs averaged per candidate, and arrivals in each."""
POINTS = (0, 0.5, 1, 2.5, *range(5, 100, 5), 97.5, 99, 99.5, 99.9, 100)
FEWEST = 20
"""Requests below which nothing can be fitted."""
LRU_SHARES = (0.01, 0.05, 0.25)
"""Cache sizes, as parts of all distinct blocks, at which reuse is compared."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fit:
    """A fitted workload.

    Attributes:
        content: the YAML's keys.
        measured, synthetic: statistics of the trace, and of fitted traffic as the mean over seeds.
        notes: what was changed or left out.
    """

    name: str
    content: dict[str, Any]
    measured: dict[str, Any]
    synthetic: dict[str, Any]
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Each statistic beside its synthetic value and the relative error."""
        rows = []
        for name, value in flat(self.measured).items():
            made = flat(self.synthetic).get(name)
            error = None if value in (None, 0) or made is None else made / value - 1.0
            rows.append({"statistic": name, "trace": value, "synthetic": made, "error": error})
        return rows

    def text(self) -> str:
        """The YAML file, with the comparison as comments."""
        lines = [f"# Traffic like {self.name}, fitted by `llmlab workload fit`; trace -> synthetic (mean over seeds):"]
        for row in self.rows():
            if row["trace"] is not None:
                made = "-" if row["synthetic"] is None else f"{row['synthetic']:.4g}"
                lines.append(f"#   {row['statistic']}: {row['trace']:.4g} -> {made}")
        lines += [f"# {note}" for note in self.notes]
        return "\n".join(lines) + "\n" + yaml.safe_dump(self.content, sort_keys=False, default_flow_style=None, width=120)

    def write(self, path: str | Path) -> None:
        """Write the YAML file.

        Raises:
            InputError: the name does not end in .yaml or .yml, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".yaml", ".yml"):
            raise InputError(path, "out", path.name, "must end in .yaml or .yml")
        write_atomic(path, self.text())


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Nested statistics as one level of dotted names."""
    found: dict[str, float | None] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _moments(arrival_ns: np.ndarray) -> np.ndarray:
    return np.array([gap_cv(arrival_ns), *(fano(arrival_ns, w) for w in WINDOWS_S)])


def fit_arrivals(arrival_ns: np.ndarray, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Parameters of `synthetic.modulated` that give these arrivals' burstiness.

    Windows that fit fewer than three times into the trace are left out.
    """
    from scipy.optimize import least_squares

    span_s = float(arrival_ns[-1] - arrival_ns[0]) / NANOSECONDS
    rate = (len(arrival_ns) - 1) / span_s
    wanted = _moments(arrival_ns)
    known = np.isfinite(wanted) & (wanted > 0)
    count = min(len(arrival_ns), MOST_ARRIVALS)
    calls = 0

    def residuals(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if progress is not None:
            progress("fitting arrivals", min(calls, 100), 100)
        made = np.zeros(len(wanted))
        for replica in range(REPLICAS):
            rng = np.random.default_rng([seed, replica])
            swings = [(float(a), s) for a, s in zip(x[1:], SWING_SECONDS)]
            made += _moments(synthetic.modulated(count, rate, float(np.exp(x[0])), swings, rng)) / REPLICAS
        return np.log(np.maximum(made[known], 1e-9) / wanted[known])

    best = None
    for swings in ((0.02, 0.02), (0.3, 0.3)):  # two starts: nearly steady, and wandering
        start = np.array([np.log(min(max(wanted[0], 0.02), 5.0)), *swings])
        found = least_squares(
            residuals, start, bounds=([np.log(0.005), 0.0, 0.0], [np.log(20.0), 3.0, 3.0]), diff_step=0.05, max_nfev=12
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    swings_found = [{"log_std": round(float(a), 4), "seconds": s} for a, s in zip(best.x[1:], SWING_SECONDS) if a > 5e-3]
    return {
        "process": "modulated",
        "rate_per_s": float(f"{rate:.5g}"),
        "cv": float(f"{np.exp(best.x[0]):.4g}"),
        "swings": swings_found,
    }


def _quantiles(values: np.ndarray, weights: np.ndarray | None = None, points: tuple[float, ...] = POINTS) -> list[float]:
    """Quantiles, of weighted values where weights are given."""
    if weights is None:
        return [float(value) for value in np.percentile(values, points)]
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return [float(np.interp(p / 100, reached, values[order])) for p in points]


def fit_lengths(tokens: np.ndarray) -> dict[str, Any]:
    """Lengths as quantiles; a single length as itself."""
    if np.ptp(tokens) == 0:
        return {"distribution": "fixed", "tokens": int(tokens[0])}
    values = np.maximum.accumulate(np.rint(_quantiles(tokens)).astype(int))
    return {"distribution": "quantiles", "at": [p / 100 for p in POINTS], "tokens": values.tolist()}


def fit_prefix(workload: Workload) -> dict[str, Any] | None:
    """Which prompts continue an earlier one, how far, and how many requests back it lies; None where nothing is shared."""
    reuse = reuse_of(workload)
    if reuse is None or not reuse.known.any():
        return None
    beyond = reuse.blocks - np.minimum(reuse.root, reuse.blocks)
    goes_on = reuse.continued & (beyond > 0)
    points = POINTS
    if goes_on.any():
        share = (reuse.known - reuse.root)[goes_on] / beyond[goes_on]
        depth = _quantiles(share, beyond[goes_on], points)  # weighted by length: the share of tokens is what counts
        back = _quantiles((np.arange(len(workload)) - reuse.parent)[goes_on], None, points)
    else:
        depth, back = [0.0] * len(points), [1.0] * len(points)
    at = [p / 100 for p in points]
    return {
        "kind": "reuse",
        "root_tokens": int(reuse.root * workload.hash_block_tokens),
        "continued": round(float(goes_on.sum() / max(1, (beyond > 0).sum())), 5),
        "depth": {"at": at, "values": [round(value, 4) for value in depth]},
        "distance_requests": {"at": at, "values": [round(value, 1) for value in back]},
    }


def _cache_statistics(workload: Workload) -> dict[str, float]:
    """Hit fractions of least-recently-used caches of several sizes."""
    distinct = len(np.unique(np.concatenate(full_blocks(workload))))
    return {f"lru_{share:.0%}_of_blocks": lru_hit_fraction(workload, max(1, round(share * distinct))) for share in LRU_SHARES}


def _mean(parts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in parts[0].items():
        values = [part[key] for part in parts]
        if isinstance(value, dict):
            found[key] = _mean(values)
        else:
            found[key] = None if any(v is None for v in values) else float(np.mean(values))
    return found


def fit_workload(workload: Workload, *, seed: int = 0, seeds: int = 4, progress: Progress | None = None) -> Fit:
    """Fit a workload and compare synthetic traffic with it.

    Args:
        workload: an open-loop trace, or a closed loop, whose clients are kept.
        seed: of the simulated moments and of the comparison.
        seeds: synthetic runs the comparison averages.
        progress: told what is done.

    Raises:
        InputError: too few requests.
    """
    name = workload.name
    if len(workload) < FEWEST:
        raise InputError(name, "requests", len(workload), f"too few to fit, need at least {FEWEST}")
    notes: list[str] = []
    workload, grid = spread_over_grid(workload, seed)
    if grid:
        notes.append(f"arrivals are stamped by a clock of {grid / NANOSECONDS:g} s; they were spread evenly over its ticks")
    content: dict[str, Any] = {"requests": len(workload)}
    if workload.clients:
        content["arrivals"] = {
            "process": "closed_loop",
            "clients": workload.clients,
            "think_s": workload.think_ns / NANOSECONDS,
        }
    elif workload.span_s == 0:
        content["arrivals"] = {"process": "at_once"}
        notes.append("every request arrives at once; give it a rate of your own")
    else:
        content["arrivals"] = fit_arrivals(workload.arrival_ns, seed, progress)
    content["prompt_tokens"] = fit_lengths(workload.prompt_tokens)
    content["output_tokens"] = fit_lengths(workload.output_tokens)
    both = all(content[side]["distribution"] == "quantiles" for side in ("prompt_tokens", "output_tokens"))
    rho = round(spearman(workload.prompt_tokens, workload.output_tokens), 4)
    if both and rho:
        content["length_rank_correlation"] = rho
    measured = describe(workload)
    if (prefix := fit_prefix(workload)) is not None:
        content["prefix"] = prefix
        content["block_tokens"] = workload.hash_block_tokens
        measured["prefix"] |= _cache_statistics(workload)
    spec = WorkloadSpec.model_validate(content)
    made = []
    for number in range(seeds):
        if progress is not None:
            progress("comparing", number, seeds)
        drawn = make_workload(spec, seed + 1 + number, Path(name))
        described = describe(drawn)
        if prefix is not None:
            described["prefix"] |= _cache_statistics(drawn)
        made.append(described)
    return Fit(name, content, measured, _mean(made), tuple(notes))
