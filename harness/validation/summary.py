"""Error figures of predicted against measured: relative errors, bias, and how often the stated interval held.

An error is (predicted - measured) / measured. Values that were not measured, or measured as zero, have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Scored = Mapping[str, Any]
"""One prediction: metric, measured, predicted, low, high, and the labels it may be grouped by."""


def has_error(row: Scored) -> bool:
    """Whether the row has something to compare: a measured value above zero."""
    return row["measured"] is not None and row["measured"] > 0


def error_figures(rows: Iterable[Scored]) -> dict[str, Any]:
    """Mean and median absolute error, bias, the 90th percentile, interval coverage and median relative width.

    Only rows with a measured value count.

    >>> one = {"metric": "tpot_mean_ms", "measured": 10.0, "predicted": 11.0, "low": 9.0, "high": 12.0}
    >>> figures = error_figures([one, {**one, "predicted": 9.0, "low": 8.0, "high": 9.5}])
    >>> figures["n"], figures["mean_abs_error"], figures["bias"], figures["coverage"]
    (2, 0.1, 0.0, 0.5)
    """
    kept = [row for row in rows if has_error(row)]
    if not kept:
        empty = ("mean_abs_error", "median_abs_error", "p90_abs_error", "bias", "coverage", "width")
        return {"n": 0, **dict.fromkeys(empty)}
    measured, predicted, low, high = (
        np.array([row[key] for row in kept], dtype=float) for key in ("measured", "predicted", "low", "high")
    )
    errors = predicted / measured - 1
    figures = {
        "mean_abs_error": np.abs(errors).mean(),
        "median_abs_error": np.median(np.abs(errors)),
        "p90_abs_error": np.quantile(np.abs(errors), 0.9),
        "bias": errors.mean(),
        "coverage": ((low <= measured) & (measured <= high)).mean(),
        "width": np.median((high - low) / predicted),
    }
    return {"n": len(kept), **{name: round(float(value), 6) + 0.0 for name, value in figures.items()}}


def grouped(rows: Sequence[Scored], *labels: str) -> list[dict[str, Any]]:
    """Error figures per combination of labels, in sorted order; combinations without a measured value are left out."""
    groups: dict[tuple[str, ...], list[Scored]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[label]) for label in labels), []).append(row)
    table = [{**dict(zip(labels, key)), **error_figures(groups[key])} for key in sorted(groups)]
    return [line for line in table if line["n"]]
