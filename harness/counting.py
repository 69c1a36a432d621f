"""Count the arithmetic of a NumPy function: what `cost` claims is compared with what the reference really multiplies.

Arrays are wrapped in a subclass that sees every call of a ufunc and of einsum. Multiply-adds of contractions (einsum and
matmul, which references use) are counted apart from elementwise operations; copies, comparisons and selections (where, take,
indexing) are no arithmetic. Integer and boolean arrays are not counted either: they are addresses and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.harness.arrays import is_float

MOVES = {"positive", "copysign", "isfinite", "isnan", "isinf", "signbit", "equal", "not_equal", "less", "less_equal"}
MOVES |= {"greater", "greater_equal", "logical_not", "logical_and", "logical_or"}


@dataclass
class Counts:
    """Floating-point operations of one run.

    Attributes:
        contracted: of matrix products, two per multiply-add; a product without a sum counts one per element.
        elementwise: everything else, one per element: additions, exponentials, reductions (one per element read).
    """

    contracted: float = 0
    elementwise: float = 0

    @property
    def total(self) -> float:
        """Both."""
        return self.contracted + self.elementwise


class Counted(np.ndarray):
    """An array that adds what is done with it to `counts`."""

    counts: Counts

    def __array_finalize__(self, whole: Any) -> None:
        if whole is not None and hasattr(whole, "counts"):
            self.counts = whole.counts

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
        counts = _counts_in((*inputs, *(named.get("out") or ())))
        plain = [_plain(x) for x in inputs]
        if named.get("out"):
            named["out"] = tuple(_plain(x) for x in named["out"])
        if "where" in named:
            named["where"] = _plain(named["where"])
        result = getattr(ufunc, method)(*plain, **named)
        first = result[0] if isinstance(result, tuple) else result
        if any(_floats(x) for x in plain):
            if ufunc is np.matmul:
                counts.contracted += 2.0 * np.size(first) * np.shape(plain[0])[-1]
            elif ufunc.__name__ not in MOVES:
                reads = method in ("reduce", "accumulate", "reduceat", "at")
                counts.elementwise += np.size(plain[-1] if method == "at" else plain[0]) if reads else np.size(first)
        return _wrapped(result, counts)

    def __array_function__(self, function: Any, types: Any, arguments: Any, named: Any) -> Any:
        if function is not np.einsum:
            return super().__array_function__(function, types, arguments, named)
        counts = _counts_in(arguments)
        plain = [_plain(x) for x in arguments]
        result = np.einsum(*plain, **named)
        counts.contracted += einsum_flops(plain[0], [np.shape(x) for x in plain[1:]], any(map(_floats, plain[1:])))
        return _wrapped(result, counts)


def einsum_flops(subscripts: str, shapes: Sequence[tuple[int, ...]], floats: bool = True) -> float:
    """Return two FLOPs per multiply-add of a contraction of two arrays; one per element where nothing is summed.

    >>> einsum_flops("ij,jk->ik", [(2, 3), (3, 4)]), einsum_flops("i,j->ij", [(2,), (3,)]), einsum_flops("ij->j", [(2, 3)])
    (48.0, 6.0, 6.0)
    """
    if not floats:
        return 0.0
    sources, _, target = subscripts.replace(" ", "").partition("->")
    size: dict[str, int] = {}
    for letters, shape in zip(sources.split(","), shapes):
        size.update(zip(letters, shape))
    points = float(np.prod([float(s) for s in size.values()]))
    if len(shapes) == 1:
        return points if set(size) - set(target) else 0.0  # a sum, or a transposition
    return points * (2.0 if set(size) - set(target) else 1.0) * (len(shapes) - 1)


def count(function: Callable[..., Any], inputs: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Counts:
    """Run a reference on counted copies of its float inputs."""
    counts = Counts()
    arrays = [_wrapped(array, counts) if is_float(array) else array for array in inputs.values()]
    with np.errstate(all="ignore"):
        function(*arrays, **options)
    return counts


def _floats(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.floating) and np.asarray(x).dtype.kind == "f"


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Counted) else x


def _counts_in(arrays: Sequence[Any]) -> Counts:
    return next(x.counts for x in arrays if isinstance(x, Counted))


def _wrapped(result: Any, counts: Counts) -> Any:
    if isinstance(result, tuple):
        return tuple(_wrapped(x, counts) for x in result)
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f":
        return result
    view = result.view(Counted)
    view.counts = counts
    return view
