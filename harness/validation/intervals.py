"""Prediction intervals from residuals: the quantiles of measured / predicted, kept per metric and load mode.

An interval [low, high] = predicted x [q05, q95]. A quantile of n residuals says nothing beyond their range, so with few
residuals the finite-sample rank (n + 1) p is used (split conformal prediction, Vovk et al.; Lei et al. 2018,
arXiv:1604.04173), clipped to the extremes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Quantiles = tuple[float, float]

LEVEL = 0.9
FEWEST = 20
"""Fewer residuals than this say too little about a tail: the coarser group answers."""


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


def interval_table(rows: Iterable[Mapping[str, Any]], level: float = LEVEL) -> dict[str, Quantiles]:
    """Residual quantiles of scored rows, keyed `mode/kind`, `kind` and `any`; small groups are left to the coarser key."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["measured"]:
            kind = metric_kind(row["metric"])
            for key in (f"{row['load_mode']}/{kind}", kind, "any"):
                groups.setdefault(key, []).append(row["measured"] / row["predicted"])
    return {
        key: residual_quantiles(ratios, level)
        for key, ratios in sorted(groups.items())
        if len(ratios) >= FEWEST or key == "any"
    }


def interval(
    table: Mapping[str, Sequence[float]], load_mode: str, metric: str, predicted: float, widening: float = 1.0
) -> tuple[float, float]:
    """Low and high for one prediction: the finest group the table has, stretched away from 1 by `widening`."""
    kind = metric_kind(metric)
    key = next((key for key in (f"{load_mode}/{kind}", kind, "any") if key in table), None)
    low, high = table[key] if key is not None else (0.5, 2.0)
    low, high = min(low, 1.0), max(high, 1.0)
    return predicted * max(0.05, 1 - (1 - low) * widening), predicted * (1 + (high - 1) * widening)
