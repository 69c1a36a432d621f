"""Fit a device's profile from published operator tables, and say how the curves fare on tables they were not fitted on."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmlab.harness.calibration.fit import KEYS, errors_of, fit
from llmlab.harness.calibration.tables import read_tables
from llmlab.reference.errors import InputError
from llmlab.simulator.cost.curves import Curve
from llmlab.simulator.hardware.device import Device, load_device_sheet
from llmlab.simulator.hardware.profile import PROFILES, DeviceProfile, load_profile

ORIGINS = {
    "_perf": ("ai-dynamo/aiconfigurator", "Apache-2.0"),
    "mlp_": ("microsoft/vidur", "MIT"),
    "attention_": ("microsoft/vidur", "MIT"),
    "net_": ("microsoft/vidur", "MIT"),
    "blis": ("inference-sim/inference-sim", "Apache-2.0"),
    "mha_": ("inference-sim/inference-sim", "Apache-2.0"),
    "llmservingsim": ("casys-kaist/LLMServingSim", "MIT"),
}
"""Who published a table, by a part of its name."""


BORROWED = {"h200_sxm": ("h100_sxm", ("memory", "send_recv"))}
"""Kinds nobody timed on a device, taken from the shipped profile of one with the same processor: fractions of its peaks."""


def origin(source: str) -> tuple[str, str]:
    """Repository and licence of a table."""
    return next((found for part, found in ORIGINS.items() if part in source), ("unknown", "unknown"))


def primary(samples: pd.DataFrame) -> pd.Series:
    """Which rows are fitted: of each kind those of one origin, the densest grid first; the others are a check."""
    order = ("ai-dynamo/aiconfigurator", "casys-kaist/LLMServingSim", "microsoft/vidur", "inference-sim/inference-sim")
    ranks = {repository: rank for rank, repository in enumerate(order)}
    rank = samples["source"].map({source: ranks.get(origin(source)[0], len(ranks)) for source in samples["source"].unique()})
    return rank == rank.groupby([samples["kind"], samples["dtype"], samples["kv_dtype"]]).transform("min")


def profile_name(device: Device) -> str:
    """Name of the profile fitted on this very device.

    Raises:
        InputError: its curves come from another device, so there are no tables of it.
    """
    if not device.fitted or not device.profile:
        raise InputError("gpu", "device", device.name, "no operator tables of this device are known")
    return device.profile


def calibrate_tables(
    folder: str | Path,
    device: str,
    *,
    out: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DeviceProfile:
    """Fit the profile of a listed device from the tables in a folder; write it where `out` says.

    Raises:
        InputError: an unknown device, a folder without its tables, or a table that cannot be read.
    """
    sheet = load_device_sheet(device)
    samples = read_tables(folder, profile_name(sheet))
    chosen = primary(samples)
    fitted = samples[chosen]
    expected = fitted.groupby(["kind", "operator", "dtype", "kv_dtype"]).ngroups
    done: list[str] = []

    def advance(name: str) -> None:
        done.append(name)
        if progress:
            progress(name, len(done) - 1, max(expected, len(done)))

    profile = fit(fitted, sheet, progress=advance)
    profile = replace(profile, curves=dict(profile.curves) | borrowed(sheet.profile))
    profile = replace(profile, provenance=describe(samples, chosen, profile))
    if out is not None:
        profile.save(out)
    return profile


def borrowed(name: str) -> dict[str, Curve]:
    """Curves a profile takes from another device's; they claim no rows and no held-out error."""
    if name not in BORROWED:
        return {}
    lender, kinds = BORROWED[name]
    return {
        key: replace(curve, rows=0, held_out={}, source=f"borrowed from {lender}: {curve.source}")
        for key, curve in load_profile(PROFILES / f"{lender}.json").curves.items()
        if key.split(".")[0] in kinds
    }


def describe(samples: pd.DataFrame, chosen: pd.Series, profile: DeviceProfile) -> dict[str, Any]:
    """Provenance: date, tables with their origin and row counts, and the error on tables left out altogether."""
    tables = samples["source"].str.split(" ").str[0]
    listed = []
    for table, rows in samples.groupby(tables):
        repository, licence = origin(str(table))
        used = bool(chosen[rows.index].any())
        listed.append({"table": table, "repository": repository, "licence": licence, "rows": len(rows), "fitted": used})
    rest = samples[~chosen & samples["kind"].isin(["gemm", "attention_prefill", "attention_decode", "all_reduce"])]
    transfer = []
    for table, rows in rest.groupby(tables[rest.index]):
        scored = errors_of(profile, rows, only_held_out=False)
        transfer += [
            {"table": table, **{key: _plain(value) for key, value in row.items()}} for row in scored.to_dict("records")
        ]
    return {
        "what": "efficiency curves fitted on half of each table; held_out is the error on the other half",
        "date": datetime.date.today().isoformat(),
        "tables": listed,
        "other_tables": transfer,
        "shape_columns": {kind: list(keys) for kind, keys in KEYS.items() if kind in set(samples["kind"])},
    }


def _plain(value: Any) -> Any:
    return (
        float(f"{value:.5g}")
        if isinstance(value, float | np.floating)
        else int(value)
        if isinstance(value, np.integer)
        else value
    )
