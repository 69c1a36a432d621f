"""What a device's curves are worth on another device: predict each from another's profile, and compare with its own tables.

A device without tables borrows fractions of peaks from a measured one. Here every measured device is treated as if it had none:
the ratios measured / predicted over its tables, under curves fitted on another device only, are the honest interval of such a
prior. They are pooled by kind of operator and by how far the lender is: of the same generation, or of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmlab.harness.calibration.fit import groups, with_projections
from llmlab.harness.calibration.from_tables import primary
from llmlab.harness.calibration.tables import read_tables
from llmlab.reference.files import write_atomic
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.hardware.profile import PROFILES, kind_of, load_profile

PAIRS = (
    ("h200_sxm", "H200-SXM-141GB", "h100_sxm"),
    ("h100_sxm", "H100-SXM-80GB", "h200_sxm"),
    ("h800_sxm", "H800-SXM-80GB", "h100_sxm"),
    ("h20_sxm", "H20-SXM-96GB", "h100_sxm"),
    ("a30", "A30", "a100_sxm"),
    ("h100_sxm", "H100-SXM-80GB", "a100_sxm"),
    ("h200_sxm", "H200-SXM-141GB", "a100_sxm"),
    ("a100_sxm", "A100-SXM-80GB", "h100_sxm"),
    ("rtx_pro_6000", "RTX-PRO-6000-96GB", "rtx_4090"),
    ("rtx_4090", "RTX-4090", "rtx_pro_6000"),
)
"""Tables, the device they are of, and the profile that has to predict them."""

MOST_ROWS = 40_000
"""Tables of more rows are thinned."""

MOST_OF_PEAK = 1.2
"""Products that seem to exceed the device's peak by more are failed measurements (one table has them)."""


def transfer_errors(
    folder: str | Path,
    pairs: Sequence[tuple[str, str, str]] = PAIRS,
    *,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """One row per pair and curve: rows, mean absolute error, and quantiles of measured / predicted.

    Latent attention is left out: its kernels differ between generations more than the devices do. So are the 8-bit products
    of InferSim, which were timed without the quantization of their operand.

    Raises:
        InputError: no such folder, or a table that cannot be read.
    """
    found: list[dict[str, Any]] = []
    for tables, device_name, lender in pairs:
        if progress:
            progress(f"{device_name} from {lender}")
        device, profile = load_device_sheet(device_name), load_profile(PROFILES / f"{lender}.json")
        samples = read_tables(folder, tables)
        possible = 2.0 * samples["m"] * samples["n"] * samples["k"] / samples["seconds"]
        possible = ~(possible > MOST_OF_PEAK * device.peak_flops_per_s("bfloat16")) | (samples["dtype"] != "bfloat16")
        alone = samples["source"].str.startswith("infersim") & (samples["kind"] == "gemm")
        samples = samples[primary(samples) & possible & ~alone & ~samples["kind"].str.endswith("_mla")]
        if len(samples) > MOST_ROWS:
            samples = samples.sample(MOST_ROWS, random_state=0)
        relation = "same generation" if profile.device.generation == device.generation else "another generation"
        for group in groups(with_projections(samples, profile.curves, device), device):
            if group.name not in profile.curves or "eager" in group.name:
                continue
            curve = profile.curves[group.name]
            ratios = group.seconds / np.asarray(curve.seconds(group.limits, group.columns))
            found.append(
                {
                    "device": device.name,
                    "lender": lender,
                    "relation": relation,
                    "curve": group.name,
                    "kind": kind_of(curve.form),
                    "rows": len(ratios),
                    "mean_absolute_error": float(np.abs(1.0 / ratios - 1.0).mean()),
                    "low": float(np.quantile(ratios, 0.05)),
                    "median": float(np.median(ratios)),
                    "high": float(np.quantile(ratios, 0.95)),
                }
            )
    return pd.DataFrame(found)


def pooled(errors: pd.DataFrame) -> list[dict[str, Any]]:
    """Per relation and kind the factor within which measured / predicted lies, either way: it is not known which way.

    The geometric mean, over pairs and curves, of the wider of the 5 % and the 95 % quantile.
    """
    records = []
    for (relation, kind), rows in errors.groupby(["relation", "kind"], sort=True):
        record = {"relation": str(relation), "kind": str(kind), "curves": len(rows), "rows": int(rows["rows"].sum())}
        record["mean_absolute_error"] = round(float(rows["mean_absolute_error"].mean()), 3)
        wider = np.maximum(np.abs(np.log(rows["low"])), np.abs(np.log(rows["high"])))
        factor = float(np.exp(wider.mean()))
        record |= {"low": round(1.0 / factor, 3), "high": round(factor, 3)}
        records.append(record)
    return records


def write_transfer(folder: str | Path, out: str | Path) -> Path:
    """Measure and write `simulator/hardware/transfer.yaml`.

    Raises:
        InputError: what `transfer_errors` raises.
    """
    import yaml

    head = (
        "# What a borrowed profile is worth: measured / predicted where a device's tables are predicted with another's,\n"
        "# 5 % and 95 % quantiles, the wider one either way, means over pairs and curves (harness/calibration/transfer.py).\n"
    )
    return write_atomic(out, head + yaml.safe_dump(pooled(transfer_errors(folder)), sort_keys=False))
