"""Prediction intervals from residuals: the quantiles of measured / predicted, kept per metric and load mode.

An interval [low, high] = predicted x [q05, q95]. A quantile of n residuals says nothing beyond their range, so with few
residuals the finite-sample rank (n + 1) p is used (split conformal prediction, Vovk et al.; Lei et al. 2018,
arXiv:1604.04173), clipped to the extremes. Predictions are trusted differently: `fitted` where the engine's constants were
fitted on published runs and the curves measured on this device, `prior` where either is an estimate. Each has its own groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Quantiles = tuple[float, float]

LEVEL = 0.92
"""A little above the 90 % aimed at: quantiles of residuals that a fit has seen are narrower than those of rows to come."""
FEWEST = 20
"""Fewer residuals than this say too little about a tail: the coarser group answers."""

STRANGER = 1.25
"""Intervals of models without a published run among the residuals are this much wider."""

FEWEST_OF_ENGINE = 60
"""The same for groups of one engine: its rows come from few sources, so more of them are asked for."""


def residual_quantiles(ratios: Sequence[float], level: float = LEVEL) -> Quantiles:
    """The central `level` interval of measured / predicted ratios.

    >>> residual_quantiles([0.9, 1.0, 1.1])
    (0.9, 1.1)
    """
    ordered = np.sort(np.asarray(ratios, dtype=float))
    tail = (1 - level) / 2
    ranks = np.clip([tail * (len(ordered) + 1), (1 - tail) * (len(ordered) + 1)], 1, len(ordered))
    low, high = np.interp(ranks, np.arange(1, len(ordered) + 1), ordered)
    return float(low), float(high)


def metric_kind(metric: str) -> str:
    """Metrics that err alike share residuals: the percentile of a latency is dropped, rates are one kind.

    >>> metric_kind("ttft_p90_ms"), metric_kind("ttft_mean_ms"), metric_kind("out_tok_per_s")
    ('ttft_tail', 'ttft', 'throughput')
    """
    if not metric.endswith("_ms"):
        return "throughput"
    what, statistic, _ = metric.split("_")
    return what if statistic in ("mean", "p50") else f"{what}_tail"


def keys_of(load_mode: str, metric: str, engine: str = "", trust: str = "") -> tuple[str, ...]:
    """Groups a prediction belongs to, the finest first: those of its engine, of its trust, of its load mode, of its kind.

    >>> keys_of("static_batch", "tpot_mean_ms", "nim", "fitted")[:2]
    ('static_batch/tpot@fitted@nim', 'static_batch/tpot@fitted')
    """
    kind = metric_kind(metric)
    fine = (f"{load_mode}/{kind}@{trust}@{engine}", f"{load_mode}/{kind}@{trust}", f"{kind}@{trust}") if trust else ()
    return (*fine, f"{load_mode}/{kind}", kind, "any")


def _fewest(key: str) -> int:
    return FEWEST_OF_ENGINE if key.count("@") == 2 else 1 if key == "any" else FEWEST


def interval_table(rows: Iterable[Mapping[str, Any]], level: float = LEVEL) -> dict[str, Quantiles]:
    """Residual quantiles of scored rows by the keys of `keys_of`; small groups are left to the coarser key."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["measured"]:
            for key in keys_of(row["load_mode"], row["metric"], row.get("engine", ""), row.get("trust", "")):
                groups.setdefault(key, []).append(row["measured"] / row["predicted"])
    return {key: residual_quantiles(ratios, level) for key, ratios in sorted(groups.items()) if len(ratios) >= _fewest(key)}


def interval(
    table: Mapping[str, Sequence[float]],
    load_mode: str,
    metric: str,
    predicted: float,
    widening: float = 1.0,
    *,
    engine: str = "",
    trust: str = "",
    stranger: bool = False,
) -> tuple[float, float]:
    """Low and high for one prediction: the finest group the table has, stretched away from 1 by `widening`.

    A group of equal trust has seen errors of that trust; only a coarser one is stretched. A model none of whose runs gave
    residuals is a stranger: its intervals are wider by what leaving a model out of the fits costs.
    """
    key = next((key for key in keys_of(load_mode, metric, engine, trust) if key in table), None)
    low, high = table[key] if key is not None else (0.5, 2.0)
    low, high = min(low, 1.0), max(high, 1.0)
    if key is not None and "@" in key:
        widening = 1.0
    if stranger:
        widening *= STRANGER
    return predicted * max(0.05, 1 - (1 - low) * widening), predicted * (1 + (high - 1) * widening)
