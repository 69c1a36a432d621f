"""bfloat16 for Numba, which has none: arrays are seen as their 16 bits, widened when read and rounded when written.

A bfloat16 is the upper half of a float32, so that widening is a shift. NumPy's bfloat16 arrays come from ml_dtypes; kernels
never import it: they are given such arrays, and make new ones of the dtype they were given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from llmlab.kernels.numba_math import INLINED

NUMBA_FLOATS = ("float64", "float32", "bfloat16")
"""What a Numba twin claims whose loops read and write through `widened` and `put`."""


def is_bfloat16(dtype: np.dtype) -> bool:
    """True for the dtype of ml_dtypes; asked in this order because a dtype's name takes as long to make as a small kernel."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def bits(array: np.ndarray) -> np.ndarray:
    """A bfloat16 array as uint16 without a copy; any other array as it is."""
    return array.view(np.uint16) if is_bfloat16(array.dtype) else array


def working_dtype(array: np.ndarray) -> np.dtype:
    """What a kernel computes in: float32 for bfloat16, else the array's own."""
    return np.dtype(np.float32) if is_bfloat16(array.dtype) else array.dtype


@intrinsic
def _widen(typing_context: Any, half: Any) -> Any:
    if half != types.uint16:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(half), generate


@intrinsic
def _narrow(typing_context: Any, value: Any) -> Any:
    """Round to nearest, ties to even; NaN stays NaN (rounding its bits could carry it to zero)."""
    if value != types.float32:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        constant = lambda number: ir.Constant(word, number)  # noqa: E731
        whole = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(whole, constant(16)), constant(1))
        rounded = builder.lshr(builder.add(whole, builder.add(odd, constant(0x7FFF))), constant(16))
        is_nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(is_nan, constant(0x7FC0), rounded), ir.IntType(16))

    return types.uint16(value), generate


def widened(x: Any) -> Any:
    """The float32 of a bfloat16's bits; any float as it is."""
    if isinstance(x, np.uint16):
        return (np.asarray(x).astype(np.uint32) << np.uint32(16)).view(np.float32)[()]
    return x


@overload(widened, jit_options=INLINED)
def _widened(x):  # type: ignore[no-untyped-def]
    return (lambda x: _widen(x)) if x == types.uint16 else (lambda x: x)


def put(row: np.ndarray, place: int, value: Any) -> None:
    """row[place] = value, rounded to bfloat16 where the row holds bits; for compiled code."""
    raise NotImplementedError("is compiled only")


@overload(put, jit_options=INLINED)
def _put(row, place, value):  # type: ignore[no-untyped-def]
    if row.dtype == types.uint16:

        def write(row, place, value):  # type: ignore[no-untyped-def]
            row[place] = _narrow(value)
    else:

        def write(row, place, value):  # type: ignore[no-untyped-def]
            row[place] = value

    return write
