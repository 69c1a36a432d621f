"""What `llmlab list` shows: one row per component, all of it found by walking folders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmlab.harness.oracle import oracles_of
from llmlab.kernels.twin import backends_of
from llmlab.reference.catalog import components
from llmlab.reference.op import Component, Op

ROOT = Path(__file__).resolve().parent.parent


def notebook_of(component_id: str, texts: Mapping[str, str]) -> str | None:
    """The first teaching notebook that names the component's id, alone or in an import, or None."""
    named = re.compile(rf"(?<!\w){re.escape(component_id)}(?!\w)")
    return next((name for name, text in texts.items() if named.search(text)), None)


def called_as(component: Component) -> str:
    """The reference's name and parameters: what a twin of it must take.

    >>> called_as(components()["layers.softmax"])
    'softmax(x_BTS, *, axis=-1)'
    """
    signature = inspect.signature(component.reference)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    name = getattr(component.reference, "__name__", component.id)
    return f"{name}{inspect.Signature(bare)}"


def listing(ids: Collection[str] | None = None) -> list[dict[str, Any]]:
    """One row per component, or per one named: {id, family, paper, kind, twins, oracle, cost, gradient, notebook}."""
    texts = {path.name: path.read_text() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
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
            "notebook": notebook_of(component_id, texts),
        }
        for component_id, component in components().items()
        if ids is None or component_id in ids
    ]
