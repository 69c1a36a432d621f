"""Outside oracles: code nobody here wrote that must agree with a reference.

An oracle lives at the component's path, `harness/oracles/attention/gqa.py`, and takes the reference's arguments (NumPy
arrays in float64 unless `dtype` says otherwise, plus its options). Where no library exists the oracle is an exact
enumeration and its `library` says so. A component without one fails the completeness test with its name.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmlab.reference.op import Component

FLOOR = Path(__file__).resolve().parent / "oracles"


@dataclass(frozen=True)
class Oracle:
    """One registered oracle: what it checks, whose code it runs, in which dtype, and the modules it needs."""

    component: Component
    library: str
    function: Callable[..., Any]
    dtype: str
    needs: tuple[str, ...]

    def missing(self) -> str:
        """Say what this machine lacks to run it, or return the empty string."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"needs {' and '.join(absent)}" if absent else ""


_registered: dict[tuple[str, str], Oracle] = {}
F = TypeVar("F", bound=Callable[..., Any])


def oracle(component: Component, *, library: str, dtype: str = "float64", needs: Sequence[str] = ()) -> Callable[[F], F]:
    """Register the decorated function as an oracle of an imported declaration.

    Args:
        component: the declaration it checks.
        library: what is called, as people would look it up ("torch.nn.functional.rms_norm"), or "exact enumeration".
        dtype: the float dtype the library computes in; the tolerance follows from it.
        needs: import names that must be installed. Import them inside the function, not at module level.
    """

    def add(function: F) -> F:
        _registered[component.id, library] = Oracle(component, library, function, dtype, tuple(needs))
        return function

    return add


def oracles_of(component: Component) -> list[Oracle]:
    """Import the component's oracle file, if it has one, and return its oracles."""
    family, name = component.id.split(".")
    if (FLOOR / family / f"{name}.py").is_file():
        importlib.import_module(f"llmlab.harness.oracles.{family}.{name}")
    return [entry for key, entry in sorted(_registered.items()) if key[0] == component.id]
