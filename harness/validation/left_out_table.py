"""The shipped table of leave-one-out errors, and how it is put beside the errors of rows at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LEFT_OUT = Path(__file__).resolve().parent / "leave_one_out.yaml"


def shipped_table() -> dict[str, Any]:
    """The shipped leave-one-out errors; empty where none ship."""
    import yaml

    if not LEFT_OUT.is_file():
        return {}
    found: dict[str, Any] = yaml.safe_load(LEFT_OUT.read_text())
    return found


def beside(lines: Sequence[Mapping[str, Any]], table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per load mode and metric: the error over the rows at hand, and what the shipped table says with and without each group.

    Lines whose load mode and metric the table does not know are left out; kinds of metric are not mixed.
    """
    known = {
        by: {(line["load_mode"], line["metric"]): line for line in found} for by, found in table.get("overall", {}).items()
    }
    shown = []
    for line in lines:
        key = (line["load_mode"], line["metric"])
        if any(key in found for found in known.values()):
            shown.append(
                {"load_mode": key[0], "metric": key[1], "n": line["n"], "mean_abs_error": line["mean_abs_error"]}
                | {f"without_own_{by}": found[key]["left_out"] if key in found else None for by, found in known.items()}
                | {"left_out_rows": max(found[key]["n"] for found in known.values() if key in found)}
                | {"left_out_fitted": max(found[key]["fitted"] for found in known.values() if key in found)}
            )
    return shown
