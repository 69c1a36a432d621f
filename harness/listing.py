"""What `llmlab list` shows: one row per component, all of it found by walking folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.harness.oracle import oracles_of
from llmlab.kernels.twin import backends_of
from llmlab.reference.catalog import components
from llmlab.reference.op import Op

ROOT = Path(__file__).resolve().parent.parent


def _notebook_of(component_id: str) -> str | None:
    """The first teaching notebook that names the component's import path or id, or None."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text()
        if component_id in text or f"reference.{component_id}" in text:
            return path.name
    return None


def listing() -> list[dict[str, Any]]:
    """One row per component: {id, family, paper, kind, twins, oracle, cost, gradient, notebook}."""
    return [
        {
            "id": component_id,
            "family": component_id.split(".")[0],
            "paper": component.paper,
            "kind": "op" if isinstance(component, Op) else "procedure",
            "twins": backends_of(component_id),
            "oracle": [entry.library for entry in oracles_of(component)],
            "cost": component.cost is not None,
            "gradient": isinstance(component, Op) and component.backward is not None,
            "notebook": _notebook_of(component_id),
        }
        for component_id, component in components().items()
    ]
