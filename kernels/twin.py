"""Optimized twins: how a kernel says which declaration it implements, and how others find it.

A twin takes and returns its backend's own arrays (NumPy for numba, tensors for torch and triton), with the parameters of
the reference. It lives at the reference's path plus the backend: `kernels/attention/gqa_numba.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from llmlab.reference.errors import InputError
from llmlab.reference.op import Component

Backend = Literal["numba", "torch", "triton"]
BACKENDS: tuple[Backend, ...] = ("numba", "torch", "triton")
FLOATS: dict[str, tuple[str, ...]] = {
    "numba": ("float64", "float32"),
    "torch": ("float64", "float32", "float16", "bfloat16"),
    "triton": ("float32", "float16", "bfloat16"),  # the harness drops bfloat16 under the interpreter, which computes it wrongly
}
FLOOR = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Twin:
    """One registered kernel.

    Attributes:
        component: the declaration it implements.
        backend: whose arrays it takes and returns.
        function: the kernel.
        dtypes: float dtypes it claims; parity is checked in each.
        of: what it is the twin of, the reference or its backward.
        source: "llmlab", or who brought it (file or distribution).
        looser: why an allowance is multiplied, empty where both are as computed; one of the factors is then above 1.
        tolerance_factor: times the computed allowance, for what it returns.
        gradient_factor: times the computed allowance, for gradients taken through it by autograd.
    """

    component: Component
    backend: Backend
    function: Callable[..., Any]
    dtypes: tuple[str, ...]
    of: Literal["reference", "backward"] = "reference"
    source: str = "llmlab"
    looser: str = ""
    tolerance_factor: float = 1.0
    gradient_factor: float = 1.0

    @property
    def label(self) -> str:
        """Backend, with the source where it is not llmlab and the direction where it is the backward."""
        direction = "" if self.of == "reference" else f" {self.of}"
        return f"{self.backend}{direction}" + ("" if self.source == "llmlab" else f" ({self.source})")


_registered: dict[tuple[str, str, str, str], Twin] = {}
F = TypeVar("F", bound=Callable[..., Any])


def register(twin: Twin) -> None:
    """Add a twin; a second registration of the same key replaces the first (a module imported again)."""
    _registered[twin.component.id, twin.backend, twin.of, twin.source] = twin


def twin(
    component: Component,
    *,
    backend: Backend,
    dtypes: Sequence[str] | None = None,
    of: Literal["reference", "backward"] = "reference",
    source: str = "llmlab",
    looser: str = "",
    tolerance_factor: float = 1.0,
    gradient_factor: float = 1.0,
) -> Callable[[F], F]:
    """Register the decorated kernel as a twin of an imported declaration.

    Raises:
        ValueError: unknown backend, a factor without its reason, or a gradient factor where no autograd goes.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is none of {', '.join(BACKENDS)}")
    if (tolerance_factor != 1.0 or gradient_factor != 1.0) != bool(looser):
        raise ValueError("a looser twin states why: give `looser` together with `tolerance_factor` or `gradient_factor`")
    if gradient_factor != 1.0 and (backend != "torch" or of == "backward"):
        raise ValueError(f"gradient_factor={gradient_factor}: no autograd goes through a {backend} twin of the {of}")

    def add(function: F) -> F:
        claimed = tuple(dtypes or FLOATS[backend])
        register(Twin(component, backend, function, claimed, of, source, looser, tolerance_factor, gradient_factor))
        return function

    return add


def missing(backend: str) -> str:
    """Say what a backend lacks on this machine, or return the empty string."""
    needs = {"numba": ("numba",), "torch": ("torch",), "triton": ("torch", "triton")}[backend]
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}" if absent else ""


def backends_of(component_id: str) -> list[str]:
    """Backends that have a twin file for this component, found without importing anything."""
    family, name = component_id.split(".")
    return [backend for backend in BACKENDS if (FLOOR / family / f"{name}_{backend}.py").is_file()]


def twins_of(component: Component, backends: Sequence[str] = BACKENDS) -> list[Twin]:
    """Import and return every twin of a component whose backend can run here, other people's included."""
    family, name = component.id.split(".")
    for backend in backends_of(component.id):
        if backend in backends and not missing(backend):
            importlib.import_module(f"llmlab.kernels.{family}.{name}_{backend}")
    load_entry_points()
    return [
        entry
        for key, entry in sorted(_registered.items())
        if key[0] == component.id and entry.backend in backends and not missing(entry.backend)
    ]


_loaded_entry_points = False


def load_entry_points() -> None:
    """Import every installed entry point of the group `llmlab.kernels` once; each registers its twins when imported.

    Raises:
        InputError: one does not import.
    """
    global _loaded_entry_points
    if not _loaded_entry_points:
        _loaded_entry_points = True
        for entry in entry_points(group="llmlab.kernels"):
            try:
                entry.load()
            except Exception as error:  # whatever importing somebody's module raises
                whose = f"distribution {entry.dist.name}" if entry.dist else "entry point"
                why = f"does not import: {type(error).__name__}: {error}"
                raise InputError(whose, "llmlab.kernels", entry.value, why) from error


def load_kernel(spec: str, component: Component, backend: Backend, dtypes: Sequence[str] | None = None) -> Twin:
    """Register somebody's function `FILE.py:NAME` as a twin, without it importing llmlab.

    Raises:
        ValueError: no such file, or no such callable in it.
    """
    path_text, _, function_name = spec.rpartition(":")
    path = Path(path_text)
    if not path_text or not path.is_file():
        raise ValueError(f"kernel={spec!r}: expected FILE.py:FUNCTION, and the file must exist")
    module_name = f"llmlab_kernel_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"kernel={spec!r}: {path.name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    module_spec.loader.exec_module(module)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"kernel={spec!r}: {path.name} has no function {function_name!r}")
    entry = Twin(component, backend, function, tuple(dtypes or FLOATS[backend]), source=path.name)
    register(entry)
    return entry
