"""The two declarations every component ends in: `Op` for array operators, `Procedure` for everything else.

A declaration is written once, below the reference function it names. Parity, gradient, dtype, cost and speed checks, the
catalog, the roofline, the simulator and the docs table all start from it. The component's id is its path:
`reference/attention/gqa.py` declares `attention.gqa`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Dims = Mapping[str, int]
"""Axis letter -> size."""

Draw = Callable[[Dims, np.random.Generator], Any]
"""Makes one input that is not a standard normal array (token ids, masks, block tables, lengths)."""


@dataclass(frozen=True)
class Cost:
    """Work of one call: FLOPs (2 per multiply-add) and array elements moved to and from memory at least once."""

    flops: float
    elements_read: float
    elements_written: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.elements_read + other.elements_read,
            self.elements_written + other.elements_written,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.elements_read * times, self.elements_written * times)

    __rmul__ = __mul__

    def moved_bytes(self, itemsize: float) -> float:
        """Bytes moved when every element takes `itemsize` bytes."""
        return (self.elements_read + self.elements_written) * itemsize


_AXES = re.compile(r"_([A-Z1]+)$")


def axes_of(name: str) -> str | None:
    """Return the axis letters a parameter name ends in, or None for an option.

    >>> axes_of("q_BTKGH"), axes_of("weight_D"), axes_of("causal")
    ('BTKGH', 'D', None)
    """
    found = _AXES.search(name)
    return found.group(1) if found else None


def _component_id(function: Callable[..., Any]) -> str:
    return ".".join(function.__module__.split(".")[-2:])


@dataclass(frozen=True, eq=False)
class Op:
    """An array operator.

    Attributes:
        reference: the equation in NumPy. Array parameters end in their axes (`q_BTKGH`; `1` is an axis of size 1), the rest
            are options.
        cost: FLOPs and elements as a function of the axis sizes (derived axes included) at the default options.
        dims: sizes the property tests draw from; keep them small and odd, with 1 in range wherever the operator allows it.
        shapes: named shapes people quote; these are timed. Each names every key of `dims`.
        paper: where the equation comes from (arXiv id, DOI or title with year).
        backward: `backward(*output_gradients, *inputs, **options)` -> one gradient per array input, None for integers and
            booleans.
        draw: per parameter name, how to make an input that is not standard normal.
        derived: axes that follow from others (`{"D": lambda d: d["N"] * d["H"]}`).
        options: the option sets to check; the first is the one that is timed and must equal the defaults' meaning of `cost`.
        empty: axes that may be 0.
        nonfinite: array parameters in which a NaN or an infinity reaches the same outputs in every twin as in the reference.
            None means every float input. What happens is said in the reference's docstring.
        powers: scaling laws: doubling that axis multiplies the FLOPs by 2**power as the axis grows.
    """

    reference: Callable[..., Any]
    cost: Callable[[Dims], Cost]
    dims: Mapping[str, range]
    shapes: Mapping[str, Dims]
    paper: str
    backward: Callable[..., tuple[Any, ...]] | None = None
    draw: Mapping[str, Draw] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Dims], int]] = field(default_factory=dict)
    options: Sequence[Mapping[str, Any]] = ({},)
    empty: Sequence[str] = ("B",)
    nonfinite: Sequence[str] | None = None
    powers: Mapping[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`family.component`, from the path of the reference."""
        return _component_id(self.reference)

    @property
    def inputs(self) -> dict[str, str]:
        """Array parameters in call order, with their axes."""
        return {name: axes for name in inspect.signature(self.reference).parameters if (axes := axes_of(name)) is not None}

    def complete(self, dims: Dims) -> dict[str, int]:
        """Add the derived axes to `dims`."""
        whole = dict(dims)
        for axis, size in self.derived.items():
            whole[axis] = size(whole)
        return whole

    def make_inputs(self, dims: Dims, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw every array input for these axis sizes: float64 standard normal unless `draw` says otherwise."""
        dims = self.complete(dims)
        return {
            name: np.asarray(self.draw[name](dims, rng))
            if name in self.draw
            else rng.standard_normal([1 if axis == "1" else dims[axis] for axis in axes])
            for name, axes in self.inputs.items()
        }

    def cost_of(self, dims: Dims) -> Cost:
        """Cost for these axis sizes, derived axes filled in."""
        return self.cost(self.complete(dims))


def equal(left: Any, right: Any) -> bool:
    """Exact equality of nested results; arrays compare by value and shape, NaN equals NaN."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        left, right = np.asarray(left), np.asarray(right)
        if left.shape != right.shape:
            return False
        nan_matters = left.dtype.kind in "fc" and right.dtype.kind in "fc"
        return bool(np.array_equal(left, right, equal_nan=nan_matters))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@dataclass(frozen=True, eq=False)
class Procedure:
    """A component that is not an array operator: tokenizer, index, router, schedule, decoding loop, allocator, metric.

    Attributes:
        reference: a callable taking keyword arguments; stateful components give a function that replays a list of commands.
        examples: draws one set of keyword arguments; `examples(rng)` must be cheap and cover edge cases (empty, one, many).
        paper: where the procedure comes from.
        same: how two results are compared (exact equality unless said).
        cost: work as a function of named sizes, where it has a meaning.
        shapes: named argument makers people quote, timed by the benchmarks: name -> `make(rng)`.
    """

    reference: Callable[..., Any]
    examples: Callable[[np.random.Generator], Mapping[str, Any]]
    paper: str
    same: Callable[[Any, Any], bool] = equal
    cost: Callable[[Dims], Cost] | None = None
    shapes: Mapping[str, Callable[[np.random.Generator], Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`family.component`, from the path of the reference."""
        return _component_id(self.reference)


Component = Op | Procedure
