"""Requests drawn from ServeGen's client profiles (arXiv:2505.09999): per client and window a rate, a law of gaps, lengths.

Two tables: windows (`client, window_start_s, rate_rps, iat_cv, family, p1, p2`: gaps are Gamma or Weibull of shape p1) and
lengths (`client, window_start_s, in_mean, in_p1, ..., in_p99, out_mean, ...`). The stated rate sets the mean gap, the family
and p1 its shape: for the Weibull windows the stated scale p2 does not give the stated rate. Beyond the 99th percentile lengths
run on a straight line to the maximum that gives the stated mean.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.workload.trace import numbers, read_table
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

WINDOW_S = 600.0
PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
LONGEST_TAIL = 50.0
"""The maximum is at most this many times the 99th percentile."""
MOST_REQUESTS = 20_000_000


def quantile_table(mean: float, percentiles: np.ndarray) -> np.ndarray:
    """Lengths at 0, the percentiles and 1, whose straight lines have this mean where a maximum can give it.

    >>> float(quantile_table(20.0, np.array([10.0, 10, 10, 10, 10, 10, 10, 10]))[-1])
    500.0
    """
    at = np.array([0.0, *PERCENTILES, 100.0]) / 100
    values = np.concatenate(([percentiles[0]], percentiles, [percentiles[-1]]))
    below = float(np.sum((at[1:-1] - at[:-2]) * (values[1:-1] + values[:-2]) / 2))
    last = percentiles[-1]
    values[-1] = min(max(2.0 * (mean - below) / (at[-1] - at[-2]) - last, last), LONGEST_TAIL * last)
    return np.asarray(values)


def _gaps(family: str, shape: float, rate: float, count: int, rng: np.random.Generator) -> np.ndarray:
    if family == "Gamma":
        return rng.gamma(shape, 1.0 / (rate * shape), count)
    return rng.weibull(shape, count) / (rate * math.gamma(1.0 + 1.0 / shape))


def _arrivals(family: str, shape: float, rate: float, length_s: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals of one client in one window, which begins somewhere within a gap."""
    found = [np.array([-rng.random() / rate])]
    while found[-1][-1] < length_s:
        count = int(rate * length_s + 4 * math.sqrt(rate * length_s)) + 8
        found.append(found[-1][-1] + np.cumsum(_gaps(family, shape, rate, count, rng)))
    times = np.concatenate(found)
    return np.asarray(times[(times >= 0) & (times < length_s)])


def _columns(table: Any, side: str, path: Path) -> np.ndarray | None:
    names = [f"{side}_mean", *(f"{side}_p{p}" for p in PERCENTILES)]
    if not set(names) <= set(table.columns):
        return None
    blank = (table[names] == "").any(axis=1).to_numpy()
    found = np.full((len(table), len(names)), np.nan)
    if (~blank).any():
        kept = table[~blank]
        found[~blank] = np.stack([numbers(kept, name, path) for name in names], axis=1)
    return found


def read_servegen(
    windows: str | Path,
    lengths: str | Path,
    *,
    window_s: tuple[float, float],
    rate_factor: float = 1.0,
    most_clients: int | None = None,
    seed: int = 0,
) -> Workload:
    """Draw the requests that arrive in `window_s`.

    Args:
        windows: table of rates and gap laws.
        lengths: table of length percentiles; a client's nearest window with lengths is used.
        window_s: from, to, in the table's seconds.
        rate_factor: times every client's rate.
        most_clients: only the busiest ones.
        seed: of every draw.

    Raises:
        InputError: a table is malformed, or nothing arrives.
    """
    windows, lengths = Path(windows), Path(lengths)
    table = read_table(windows)
    client, start, rate, shape = (numbers(table, name, windows) for name in ("client", "window_start_s", "rate_rps", "p1"))
    family = table["family"].to_numpy() if "family" in table.columns else np.full(len(table), "")
    for bad, column, why in (
        (~np.isin(family, ("Gamma", "Weibull")), "family", "must be Gamma or Weibull"),
        (rate <= 0, "rate_rps", "must be positive"),
        (shape <= 0, "p1", "must be positive"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            shown = table[column].iloc[row] if column in table.columns else ""
            raise InputError(windows, column, shown, f"{why} (row {row + 1})")
    begin, end = window_s
    inside = (start < end) & (start + WINDOW_S > begin)
    sizes = read_table(lengths)
    owner, when = numbers(sizes, "client", lengths), numbers(sizes, "window_start_s", lengths)
    inputs, outputs = _columns(sizes, "in", lengths), _columns(sizes, "out", lengths)
    if inputs is None or outputs is None:
        side = "in" if inputs is None else "out"
        raise InputError(lengths, "columns", ",".join(sizes.columns), f"has no {side}_mean and {side}_p1 ... {side}_p99")
    known = np.isfinite(inputs).all(axis=1) & np.isfinite(outputs).all(axis=1)
    asked = np.unique(client[inside])
    sized = np.intersect1d(asked, owner[known])
    busiest = sorted(sized.tolist(), key=lambda who: (-float(rate[inside & (client == who)].sum()), who))[:most_clients]
    expected = float(rate[inside & np.isin(client, busiest)].sum()) * WINDOW_S * rate_factor
    if expected > MOST_REQUESTS:
        raise InputError(windows, "window_s", list(window_s), f"about {expected:.3g} requests, more than {MOST_REQUESTS}")
    rng = np.random.default_rng(seed)
    at = np.array([0.0, *PERCENTILES, 100.0]) / 100
    times: list[np.ndarray] = []
    prompts: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    for who in busiest:
        own = np.flatnonzero(known & (owner == who))
        for window in np.flatnonzero(inside & (client == who)):
            moments = start[window] + _arrivals(str(family[window]), shape[window], rate[window] * rate_factor, WINDOW_S, rng)
            moments = moments[(moments >= begin) & (moments < end)]
            near = own[np.argmin(np.abs(when[own] - start[window]))]
            times.append(moments)
            for table_of, drawn in ((inputs, prompts), (outputs, answers)):
                law = quantile_table(table_of[near, 0], table_of[near, 1:])
                drawn.append(np.interp(rng.random(len(moments)), at, law))
    if not sum(map(len, times)):
        raise InputError(windows, "window_s", list(window_s), "nothing arrives in it")
    moment = np.concatenate(times)
    order = np.argsort(moment, kind="stable")
    left_out = len(asked) - len(sized)
    return Workload(
        np.rint((moment[order] - begin) * NANOSECONDS).astype(np.int64),
        np.maximum(1, np.rint(np.concatenate(prompts)[order])).astype(np.int64),
        np.maximum(1, np.rint(np.concatenate(answers)[order])).astype(np.int64),
        name=windows.name + (f" ({left_out} clients without lengths left out)" if left_out else ""),
    )
