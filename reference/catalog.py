"""The catalog: every component file of `reference/<family>/` and the one declaration in it.

Nothing is listed by hand. A file whose name starts with an underscore is shared code of its family, not a component.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from llmlab.reference.op import Component, Op, Procedure

FLOOR = Path(__file__).resolve().parent


def component_ids() -> list[str]:
    """Ids of all component files, sorted, without importing them."""
    return sorted(
        f"{path.parent.name}.{path.stem}"
        for path in FLOOR.glob("*/*.py")
        if not path.name.startswith("_") and not path.parent.name.startswith(("_", "."))
    )


def load(component_id: str) -> Component:
    """Import one component and return its declaration.

    Raises:
        ValueError: there is no such file, or it does not hold exactly one declaration.
    """
    family, _, name = component_id.partition(".")
    if not (FLOOR / family / f"{name}.py").is_file() or name.startswith("_"):
        raise ValueError(f"component={component_id!r}: no file reference/{family}/{name}.py")
    module = importlib.import_module(f"llmlab.reference.{family}.{name}")
    declared = [value for value in vars(module).values() if isinstance(value, Op | Procedure) and value.id == component_id]
    if len(declared) != 1:
        raise ValueError(f"component={component_id!r}: {len(declared)} declarations in its file, expected one Op or Procedure")
    return declared[0]


@cache
def components() -> Mapping[str, Component]:
    """Every component by id, sorted by id."""
    return MappingProxyType({component_id: load(component_id) for component_id in component_ids()})
