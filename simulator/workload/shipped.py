"""Workload files that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

PRESETS = Path(__file__).resolve().parent / "presets"


def shipped_workloads() -> list[str]:
    """Names of the shipped workloads."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_workload(name: str | Path) -> Path:
    """The file a user means: the one at this path, or else the shipped one of this name.

    >>> find_workload("azure_conversation").name
    'azure_conversation.yaml'
    """
    path = Path(name)
    if not path.exists() and str(name) in shipped_workloads():
        return PRESETS / f"{name}.yaml"
    return path
