"""Tolerance is computed, never chosen.

Against float64, a twin may err at most 4 times what the plain NumPy formula itself errs in that dtype, and never less than
8 units in the last place of the largest output. NumPy has no bfloat16, and float16 formulas may overflow where a kernel
that accumulates in float32 does not: there the plain formula is evaluated in float32 on rounded inputs and its result rounded.
In float64 the formula is its own yardstick: what it errs is taken to be what a unit in the last place of every input changes,
which is much where the terms of a result cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmlab.harness.arrays import is_float, outputs, rounded, ulp

PLAIN_FACTOR = 4.0
FLOOR_ULPS = 8.0


def largest(array: np.ndarray) -> float:
    """Largest finite magnitude, 0 for none."""
    finite = np.abs(array[np.isfinite(array)]) if array.size else array
    return float(finite.max()) if finite.size else 0.0


def error_of(actual: np.ndarray, exact: np.ndarray) -> float:
    """Largest absolute difference; infinity where shapes differ or one is non-finite where the other is not the same."""
    if actual.shape != exact.shape:
        return np.inf
    if not is_float(exact):
        return 0.0 if np.array_equal(actual, exact) else np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(actual.astype(np.float64) - exact)
    same = (actual == exact) | (np.isnan(actual) & np.isnan(exact))
    difference = np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
    return float(difference.max(initial=0.0))


def in_dtype(inputs: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Inputs rounded to `dtype`, held in float64: what both sides of a comparison are given."""
    return {name: rounded(array, dtype) for name, array in inputs.items()}


def exact_and_allowed(
    function: Callable[..., Any], arrays: list[np.ndarray], dtype: str, options: Mapping[str, Any]
) -> tuple[list[np.ndarray], list[float]]:
    """Evaluate the formula in float64 on arrays already rounded to `dtype`; return outputs and the error allowed for each."""
    with np.errstate(all="ignore"):
        exact = outputs(function(*arrays, **options))
        plain = _plain(function, arrays, dtype, options)
        if dtype == "float16" and any(
            np.isfinite(e).all() and not np.isfinite(p).all() for e, p in zip(exact, plain) if is_float(e)
        ):
            plain = _plain(function, arrays, "bfloat16", options, rounding="float16")
    allowed = []
    for one_exact, one_plain in zip(exact, plain, strict=True):
        if not is_float(one_exact):
            allowed.append(0.0)
            continue
        plain_error = error_of(one_plain, one_exact)
        plain_error = plain_error if np.isfinite(plain_error) else 0.0
        allowed.append(max(PLAIN_FACTOR * plain_error, FLOOR_ULPS * ulp(largest(one_exact), dtype)))
    return exact, allowed


def moved(array: np.ndarray) -> np.ndarray:
    """Every float64 one unit in the last place up or down, by its lowest bit, so that equal values stay equal; 0 stays.

    >>> moved(np.array([1.0, 0.0, 1.0])) - 1.0
    array([-1.11022302e-16, -1.00000000e+00, -1.11022302e-16])
    """
    odd = array.view(np.int64) & 1
    with np.errstate(over="ignore"):
        return np.where((array == 0.0) | ~np.isfinite(array), array, np.nextafter(array, np.where(odd == 1, np.inf, -np.inf)))


def _plain(
    function: Callable[..., Any], arrays: list[np.ndarray], dtype: str, options: Mapping[str, Any], rounding: str | None = None
) -> list[np.ndarray]:
    if dtype == "float64":
        given = [moved(np.array(a, dtype=np.float64)) if is_float(a) else a for a in arrays]
        try:
            return outputs(function(*given, **options))
        except ValueError:  # some inputs must be what they are: a probability, a sum
            return outputs(function(*arrays, **options))
    working = "float32" if dtype == "bfloat16" else dtype
    result = outputs(function(*(a.astype(working) if is_float(a) else a for a in arrays), **options))
    return [rounded(array, rounding or dtype) for array in result]
