"""Fit efficiency curves on operator timings: half of each table to fit, the other half to say how far off the curve is.

The formulas are those of `simulator/cost/curves.py`; each has few physical parameters. A robust least-squares fit on the log
of the times is followed by a descent on the mean absolute log error, since that is what is judged. Where several formulas or
discrete choices exist (tile sizes, whether a library splits keys) every one is fitted and the best on the fitting half stays;
the held-out half is looked at once, at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llmlab.harness.calibration.tables import NUMBERS
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.curves import FORMS, NARROW_WINDOW, Curve, Limits, without_launches
from llmlab.simulator.hardware.device import Device, Peaks
from llmlab.simulator.hardware.profile import DeviceProfile

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")

CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "gemm": ("gemm", "gemm_tiles"),
    "gemm.fp8_block": ("gemm_tiles_eager",),
    "attention_prefill": ("attention_prefill", "attention_prefill_tiles"),
    "attention_decode": ("attention_decode", "attention_decode_waves"),
    "attention_prefill_mla": ("attention_prefill_mla",),
    "attention_decode_mla": ("attention_decode_mla",),
    "moe": ("moe",),
    "moe_parallel": ("moe",),
    "memory": ("memory",),
    "host": ("host",),
    **dict.fromkeys(COLLECTIVES, ("collective", "nccl", "collective_knots")),
    "all_reduce": ("collective", "all_reduce_custom"),
    "all_reduce.nccl": ("collective", "nccl"),
}
"""Formulas tried per kind, the one with fewer parameters first; a curve of its own name has its own."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("batch", "new_tokens", "context_tokens", "heads", "kv_heads", "head_width", "window"),
    "attention_decode": ("batch", "context_tokens", "heads", "kv_heads", "head_width", "window"),
    "attention_prefill_mla": (
        "batch",
        "new_tokens",
        "context_tokens",
        "heads",
        "head_width",
        "latent_width",
        "window",
        "beside_s",
    ),
    "attention_decode_mla": ("batch", "context_tokens", "heads", "latent_width", "window", "beside_s"),
    **dict.fromkeys(
        ("moe", "moe_parallel"),
        ("tokens", "hidden", "inter", "experts_per_token", "handled", "experts", "matrices", "ranks"),
    ),
    "memory": ("moved_bytes",),
    "host": ("batch",),
    **dict.fromkeys(COLLECTIVES, ("ranks", "message_bytes")),
}
"""Columns that make a row's shape."""

KNOT_BYTES = tuple(2**power for power in (16, 19, 22, 23, 25))
"""Message sizes at which a collective's curve may bend; those outside the table are left out."""

ROWS_PER_PARAMETER: Mapping[str, float] = dict.fromkeys(COLLECTIVES, 2.5)
"""A formula is tried when the fitting half has at least this many rows per parameter, 4 where not said."""

FIT_ROWS = 3000
"""More rows than this are thinned for the least-squares fit (not for the errors reported)."""


def held_out(shapes: np.ndarray) -> np.ndarray:
    """Say for each row of numbers whether it is held out: the parity of a hash of the row, the same on every machine.

    >>> held_out(np.array([[1.0, 2.0], [1.0, 2.0]])).tolist() in ([True, True], [False, False])
    True
    """
    mixed = np.full(len(shapes), 0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in np.ascontiguousarray(shapes, dtype=np.float64).view(np.uint64).T:
            mixed = mixed ^ column
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(40)) % np.uint64(2) == 1


@dataclass(frozen=True)
class Group:
    """The rows of one curve, one per shape (median of repeats)."""

    name: str
    kind: str
    limits: Limits
    columns: dict[str, np.ndarray]
    seconds: np.ndarray
    test: np.ndarray
    source: str

    def part(self, chosen: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Columns and times of the chosen rows."""
        return {name: values[chosen] for name, values in self.columns.items()}, self.seconds[chosen]


def groups(samples: pd.DataFrame, device: Device) -> Iterator[Group]:
    """Split a tidy frame into the rows of each curve, named as `DeviceProfile` looks them up."""
    for (kind, operator, dtype, kv_dtype), rows in _split(samples):
        keys = KEYS[kind.removesuffix("_windowed")]
        if rows[list(keys)].isna().any().any():
            column = next(key for key in keys if rows[key].isna().any())
            raise InputError("samples", column, None, f"missing in rows of kind {kind}")
        shapes = rows.groupby(list(keys), as_index=False, sort=True)["seconds"].median()
        columns = {key: shapes[key].to_numpy(float) for key in keys}
        name = ".".join(part for part in (kind, operator, dtype, kv_dtype if kv_dtype != dtype else "") if part)
        yield Group(
            name,
            kind.removesuffix("_windowed"),
            Limits.of(device, dtype or "bfloat16", kv_dtype or dtype or "bfloat16"),
            columns,
            shapes["seconds"].to_numpy(float),
            held_out(shapes[[key for key in keys if key != "beside_s"]].to_numpy(float)),
            ", ".join(sorted({str(source).split(" ")[0] for source in rows["source"]} - {""})),
        )


def _split(samples: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str, str], pd.DataFrame]]:
    unknown = set(samples["kind"]) - set(KEYS)
    if unknown:
        raise InputError("samples", "kind", sorted(unknown)[0], f"unknown; known: {', '.join(KEYS)}")
    for label, rows in samples.groupby("kind", sort=True):
        kind = str(label)
        if kind in ("gemm", "moe", "moe_parallel"):
            for operands, some in rows.groupby("dtype", sort=True):
                yield (kind, "", str(operands), ""), some
        elif kind.startswith("attention"):
            narrow = (rows["window"] > 0) & (rows["window"] < NARROW_WINDOW)
            for (windowed, dtype, kv), some in rows.groupby([narrow, "dtype", "kv_dtype"], sort=True):
                yield (f"{kind}_windowed" if windowed else kind, "", str(dtype), str(kv) or str(dtype)), some
        elif kind == "memory":
            yield (kind, "", "", ""), rows[rows.operator != "sampling"] if (rows.operator != "sampling").any() else rows
            for operator, some in rows[rows.operator != ""].groupby("operator", sort=True):
                yield (kind, str(operator), "", ""), some
        elif kind in COLLECTIVES:
            operators = sorted(set(rows.operator))
            best = next((name for name in ("custom", "nccl", *operators) if name in operators), "")
            for operator in operators:
                yield (kind, "" if operator == best else operator, "", ""), rows[rows.operator == operator]
        else:
            yield (kind, "", "", ""), rows


def _fit_form(
    group: Group,
    form_name: str,
    choice: Mapping[str, float],
    train: np.ndarray,
    *,
    restarts: int = 0,
    start_at: Mapping[str, float] | None = None,
    polish: bool = True,
) -> dict[str, float]:
    """Parameters of one formula with its discrete choices made, on the rows of `train`.

    Waves and minima make the error bumpy: `restarts` more starting points are tried, and the best one is followed further.
    """
    from scipy.optimize import least_squares, minimize

    form = FORMS[form_name]
    names = list(form.parameters)
    guess, low, high = (np.array([form.parameters[name][i] for name in names]) for i in range(3))
    low = np.maximum(low, 1e-13)
    columns, seconds = group.part(train)
    if len(seconds) > FIT_ROWS:
        kept = np.random.default_rng(0).permutation(len(seconds))[:FIT_ROWS]
        columns, seconds = {name: values[kept] for name, values in columns.items()}, seconds[kept]

    def errors(logs: np.ndarray) -> np.ndarray:
        parameters = dict(zip(names, np.exp(logs).tolist())) | dict(choice)
        predicted = np.maximum(form.seconds(parameters, group.limits, columns, np) + columns.get("beside_s", 0.0), 1e-12)
        return np.log(predicted / seconds)

    bounds = (np.log(low), np.log(high))
    if start_at:
        guess = np.array([start_at[name] for name in names])
    start = np.clip(np.log(guess), bounds[0] + 1e-9, bounds[1] - 1e-9)

    def judged(logs: np.ndarray) -> float:
        return float(np.abs(errors(np.clip(logs, *bounds))).mean())

    rng = np.random.default_rng(0)
    starts = [start] + [
        np.clip(start + rng.normal(0.0, 0.5, len(start)), bounds[0] + 1e-9, bounds[1] - 1e-9) for _ in range(restarts)
    ]
    found = [
        least_squares(errors, begin, bounds=bounds, loss="soft_l1", f_scale=0.08, diff_step=1e-3, max_nfev=100).x
        for begin in starts
    ]
    nearest = min(found, key=judged)
    logs = nearest
    if polish:
        limits = list(zip(*bounds))
        best = minimize(judged, nearest, method="Powell", bounds=limits, options={"maxiter": 12, "ftol": 1e-4})
        logs = np.clip(best.x if best.fun < judged(nearest) else nearest, *bounds)
    return dict(zip(names, np.exp(logs).tolist())) | dict(choice)


def _fit_knots(group: Group, train: np.ndarray) -> dict[str, float]:
    """Points of log time over log size per number of ranks, by least squares over hat functions."""
    ranks, message = group.columns["ranks"], group.columns["message_bytes"]
    parameters = {"link_bytes_per_s": group.limits.link_bytes_per_s}
    for rank in np.unique(ranks[train]):
        rows = train & (ranks == rank)
        x, y = np.log(message[rows]), np.log(group.seconds[rows])
        inside = [size for size in KNOT_BYTES if x.min() < math.log(size) < x.max()]
        knots = np.log([math.exp(x.min()), *inside, math.exp(x.max())])
        while len(knots) > 2 and len(knots) > len(x) / 1.4:
            knots = np.delete(knots, np.argmin(knots[2:] - knots[:-2]) + 1)  # few rows: fewer bends
        hats = np.stack([np.interp(x, knots, row) for row in np.eye(len(knots))], axis=1)
        smooth = 0.05 * np.diff(np.eye(len(knots)), 2, axis=0)  # decides where a knot has no row near it
        system = np.concatenate([hats, smooth]), np.concatenate([y, np.zeros(len(smooth))])
        weights = np.ones(len(x))
        level = np.zeros(len(knots))
        for _ in range(10):  # reweighted towards the median
            scale = np.concatenate([weights, np.ones(len(smooth))])
            level = np.linalg.lstsq(system[0] * scale[:, None], system[1] * scale, rcond=None)[0]
            weights = 1.0 / np.sqrt(np.maximum(np.abs(hats @ level - y), 0.02))
        rising = np.maximum.accumulate(level), np.minimum.accumulate(level[::-1])[::-1]
        level = 0.5 * (rising[0] + rising[1])  # a longer message never takes less; an outlier moves its neighbours half
        parameters |= {f"r{int(rank)}.{round(math.exp(knot))}": math.exp(value) for knot, value in zip(knots, level)}
    return parameters


def _predict(group: Group, curve: Curve, rows: np.ndarray) -> np.ndarray:
    columns, _ = group.part(rows)
    return np.asarray(curve.seconds(group.limits, columns)) + columns.get("beside_s", 0.0)


def _mean_error(group: Group, curve: Curve, rows: np.ndarray) -> float:
    return float(np.abs(_predict(group, curve, rows) / group.seconds[rows] - 1.0).mean())


def _attempts(form_name: str) -> Iterator[dict[str, float]]:
    choices = FORMS[form_name].choices
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values))


def _best_choice(group: Group, form_name: str, train: np.ndarray) -> Curve:
    """Fit a formula with each of its discrete choices; polish the best."""
    form = FORMS[form_name]
    if not form.parameters:
        return Curve(form_name, _fit_knots(group, train))
    tried = [(choice, _fit_form(group, form_name, choice, train, polish=False)) for choice in _attempts(form_name)]
    choice, nearest = min(tried, key=lambda one: _mean_error(group, Curve(form_name, one[1]), train))
    restarts = 2 if len(form.parameters) > 10 and train.sum() > 1000 else 0
    return Curve(form_name, _fit_form(group, form_name, choice, train, restarts=restarts, start_at=nearest))


def fit_group(group: Group, candidates: Sequence[str] | None = None) -> Curve:
    """Fit the best formula on the half that is not held out, and describe its errors on the half that is.

    With fewer than 8 shapes nothing is held out: `held_out` is then empty and the residuals are the fit's own.
    """
    few = len(group.seconds) < 8 or group.test.all() or not group.test.any()
    train = np.ones_like(group.test) if few else ~group.test
    best: Curve | None = None
    best_error = math.inf
    for index, form_name in enumerate(candidates or CANDIDATES.get(group.name) or CANDIDATES[group.kind]):
        size = len(FORMS[form_name].parameters)
        if index and train.sum() < ROWS_PER_PARAMETER.get(group.kind, 4.0) * max(size, 4):
            continue
        curve = _best_choice(group, form_name, train)
        error = _mean_error(group, curve, train)
        if best is None or error < 0.97 * best_error:  # more parameters must earn their place
            best, best_error = curve, error
    assert best is not None
    test = train if few else group.test
    ratios = group.seconds[test] / _predict(group, best, test)
    errors = 1.0 / ratios - 1.0
    return Curve(
        best.form,
        best.parameters,
        residuals={str(q): float(np.quantile(ratios, q)) for q in QUANTILES},
        rows=len(group.seconds),
        held_out={}
        if few
        else {
            "rows": int(test.sum()),
            "mean_absolute_error": float(np.abs(errors).mean()),
            "median_absolute_error": float(np.median(np.abs(errors))),
            "bias": float(errors.mean()),
        },
        source=group.source,
    )


def fit(
    samples: pd.DataFrame,
    peaks: Device | Peaks | DeviceProfile,
    *,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> DeviceProfile:
    """Fit every curve a tidy frame of timings supports.

    Args:
        samples: rows with the columns of `tables.py`; columns that are absent count as empty.
        peaks: the device's limits, stated or measured.
        provenance: what to record about where the timings come from.
        progress: called with each curve's name before it is fitted.

    Raises:
        InputError: an unknown kind, or a row without its shape or with a time that cannot be.
    """
    device = peaks.device() if isinstance(peaks, Peaks) else peaks.device if isinstance(peaks, DeviceProfile) else peaks
    samples = _complete(samples)
    curves: dict[str, Curve] = {}
    latent = samples["kind"].str.endswith("_mla")
    for some in (samples[~latent], samples[latent]):  # latent attention is timed with projections, so those come first
        for group in groups(with_projections(some, curves, device), device):
            if progress:
                progress(group.name)
            curves[group.name] = fit_group(group)
    return DeviceProfile(device, curves, dict(provenance or {}))


def with_projections(samples: pd.DataFrame, curves: Mapping[str, Curve], device: Device) -> pd.DataFrame:
    """Fill `beside_s` of latent attention: the matrix products of DeepSeek-V3's module that were timed with it.

    Queries and latents down, queries up, the latents' expansion (or, in decode, its absorption: as many FLOPs), output.
    """
    samples = samples.copy()
    samples["beside_s"] = samples["beside_s"].fillna(0.0)
    timed = samples["kind"].str.endswith("_mla") & (samples["operator"] != "")
    for operands in sorted(set(samples["operator"][timed])):
        chosen = timed & (samples["operator"] == operands)
        curve = curves.get(f"gemm.{operands}") or curves.get("gemm.bfloat16")
        if curve is None:
            raise InputError("samples", "kind", "attention_mla", "its projections need the device's gemm curve")
        rows = samples[chosen]
        m, heads = (rows["batch"] * rows["new_tokens"]).to_numpy(float), rows["heads"].to_numpy(float)
        parameters = without_launches(curve.parameters)
        samples.loc[chosen, "beside_s"] = sum(
            np.asarray(FORMS[curve.form].seconds(parameters, Limits.of(device, operands), {"m": m, "n": n, "k": k}, np))
            for n, k in ((2112.0, 7168.0), (192.0 * heads, 1536.0), (256.0 * heads, 512.0), (7168.0, 128.0 * heads))
        )
    return samples


def _complete(samples: pd.DataFrame) -> pd.DataFrame:
    samples = samples.copy()
    for column in ("kind", "seconds"):
        if column not in samples:
            raise InputError("samples", column, None, "missing column")
    for column in ("operator", "dtype", "kv_dtype", "source"):
        samples[column] = samples[column].fillna("").astype(str) if column in samples else ""
    for column in NUMBERS:
        if column not in samples:
            samples[column] = np.nan
    samples["window"] = samples["window"].fillna(0.0)
    bad = ~(np.isfinite(samples["seconds"].astype(float)) & (samples["seconds"] > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError("samples", "seconds", float(samples["seconds"].iloc[row]), f"must be positive and finite (row {row})")
    return samples


def errors_of(profile: DeviceProfile, samples: pd.DataFrame, *, only_held_out: bool = True) -> pd.DataFrame:
    """Errors of a profile's curves on timings: one row per curve with rows, mean and median absolute error and bias.

    With `only_held_out` the same half as in `fit` is scored, so the figures in a shipped profile can be reproduced.
    """
    rows = []
    for group in groups(with_projections(_complete(samples), profile.curves, profile.device), profile.device):
        if group.name not in profile.curves:
            continue
        chosen = group.test if only_held_out and group.test.any() else np.ones_like(group.test)
        errors = _predict(group, profile.curves[group.name], chosen) / group.seconds[chosen] - 1.0
        rows.append(
            {
                "curve": group.name,
                "form": profile.curves[group.name].form,
                "rows": int(chosen.sum()),
                "mean_absolute_error": float(np.abs(errors).mean()),
                "median_absolute_error": float(np.median(np.abs(errors))),
                "bias": float(errors.mean()),
            }
        )
    return pd.DataFrame(rows)
