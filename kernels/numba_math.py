"""Elementary functions that LLVM can turn into vector code inside Numba loops, in float32 and float64.

Numba calls libm once per element for `exp`, `sin` and their like, and does not vectorize `max`. Here they are short
polynomials and one LLVM intrinsic; each function keeps the dtype it is given. Errors: exp 1 ulp, sincos 1e-16 absolute,
normal_cdf 2e-7 absolute in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

EXACT = {"contract"}
"""Fused multiply-adds only: range reduction subtracts nearly equal numbers in a set order."""
SUMMED = {"contract", "reassoc", "nsz"}
"""Sums may be split over vector lanes; NaN and infinities keep their meaning."""

INLINED = {"forceinline": True}
"""Left as a call, a function keeps the loop around it from becoming vector code."""


@intrinsic
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of two floats of one dtype, NaN if either is: `llvm.maximum`, which vectorizes as a reduction."""
    if not (isinstance(a, types.Float) and a == b):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        name = f"llvm.maximum.{'f32' if isinstance(kind, ir.FloatType) else 'f64'}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
        return builder.call(function, arguments, fastmath=("nsz",))

    return a(a, a), generate


@intrinsic
def nearest(typing_context: Any, x: Any) -> Any:
    """The nearest whole number, ties to even, as a float of the same dtype."""
    if not isinstance(x, types.Float):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        name = f"llvm.rint.{'f32' if isinstance(kind, ir.FloatType) else 'f64'}"
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name), arguments)

    return x(x), generate


@intrinsic
def power_of_two(typing_context: Any, shifted: Any) -> Any:
    """2**n for a float that holds 1.5 * 2**(significand bits) + bias + n, by moving its lowest bits to the exponent."""
    if not isinstance(shifted, types.Float):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        integer, bits = (ir.IntType(32), 23) if isinstance(kind, ir.FloatType) else (ir.IntType(64), 52)
        return builder.bitcast(builder.shl(builder.bitcast(arguments[0], integer), ir.Constant(integer, bits)), kind)

    return shifted(shifted), generate


def _polynomial(coefficients: Any) -> Any:
    """A polynomial as straight-line fused multiply-adds (Horner), coefficients from the highest power down."""

    @intrinsic
    def polynomial(typing_context: Any, x: Any) -> Any:
        if not isinstance(x, types.Float):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = arguments[0].type
            name = f"llvm.fma.{'f32' if isinstance(kind, ir.FloatType) else 'f64'}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
            rounded = np.float32 if isinstance(kind, ir.FloatType) else np.float64
            terms = [ir.Constant(kind, float(rounded(c))) for c in coefficients]
            value = terms[0]
            for term in terms[1:]:
                value = builder.call(fma, [value, arguments[0], term])
            return value

        return x(x), generate

    return polynomial


@dataclass(frozen=True)
class ExpTerms:
    """What e**x = 2**octaves times a polynomial in r, |r| <= ln(2)/2, is made of in one dtype.

    Attributes:
        low, high: results outside are 0 and infinity.
        per_octave: 1 / ln 2.
        shift: adding it leaves the nearest whole number, plus the exponent's bias, in the lowest bits.
        ln2_high, ln2_low: ln 2 in two parts; the first times any exponent is exact.
        series: coefficients, highest power first.
        significand_bits: below the exponent field.
    """

    low: Any
    high: Any
    per_octave: Any
    shift: Any
    ln2_high: Any
    ln2_low: Any
    series: tuple[float, ...]
    significand_bits: int


def exp_terms(dtype: type) -> ExpTerms:
    """The terms for float32 (relative error of the polynomial 3e-9) or float64 (its Taylor series)."""
    info = np.finfo(dtype)
    kept_bits = 15 if dtype == np.float32 else 42
    high = math.ldexp(round(math.ldexp(math.log(2), kept_bits)), -kept_bits)
    series = _fit_exp(6) if dtype == np.float32 else [1 / math.factorial(k) for k in range(13, -1, -1)]
    return ExpTerms(
        low=dtype(math.log(2 * float(info.tiny))),
        high=dtype(math.log(float(info.max))),
        per_octave=dtype(1 / math.log(2)),
        shift=dtype(1.5 * 2.0**info.nmant + info.maxexp - 1),
        ln2_high=dtype(high),
        ln2_low=dtype(float(Decimal(2).ln() - Decimal(high))),
        series=tuple(series),
        significand_bits=int(info.nmant),
    )


def _fit_exp(degree: int) -> list[float]:
    """The polynomial through e**r at Chebyshev's points of |r| <= ln(2)/2, highest power first."""
    r = math.log(2) / 2 * np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    return np.polynomial.Polynomial.fit(r, np.exp(r), degree).convert().coef[::-1].tolist()


def _make_exps(dtype: type) -> tuple[Any, Any]:
    """Polynomial on |r| <= ln(2)/2, times a power of two."""
    terms = exp_terms(dtype)
    low, high, per_octave, shift = terms.low, terms.high, terms.per_octave, terms.shift
    ln2_high, ln2_low = terms.ln2_high, terms.ln2_low
    series = _polynomial(terms.series)
    zero, one, two, infinity = dtype(0), dtype(1), dtype(2), dtype(np.inf)

    @njit(fastmath=EXACT, error_model="numpy", forceinline=True)
    def exp_of(x):  # type: ignore[no-untyped-def]
        inside = low if x < low else (high if x > high else x)  # NaN stays
        shifted = inside * per_octave + shift
        octaves = shifted - shift
        r = (inside - octaves * ln2_high) - octaves * ln2_low
        value = series(r) * power_of_two(shifted - one) * two  # 2**128 itself is beyond float32
        value = zero if x < low else value
        return infinity if x > high else value

    @njit(fastmath=EXACT, error_model="numpy", forceinline=True)
    def exp_down_of(x):  # type: ignore[no-untyped-def]
        shifted = x * per_octave + shift
        octaves = shifted - shift
        r = (x - octaves * ln2_high) - octaves * ln2_low
        value = series(r) * power_of_two(shifted)
        return zero if x < low else value  # whatever comes out below `low`

    return exp_of, exp_down_of


_exp32, _exp_down32 = _make_exps(np.float32)
_exp64, _exp_down64 = _make_exps(np.float64)


def exp(x: Any) -> Any:
    """e**x: 0 where that is below twice the smallest normal number, infinity on overflow, NaN for NaN."""
    return np.exp(x)


@overload(exp, jit_options=INLINED)
def _exp(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: _exp32(x)
    if x == types.float64:
        return lambda x: _exp64(x)
    return None


def exp_down(x: Any) -> Any:
    """e**x for x below 88 in float32 and 709 in float64 (or NaN), all that softmax needs; faster than `exp`."""
    return np.exp(x)


@overload(exp_down, jit_options=INLINED)
def _exp_down(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: _exp_down32(x)
    if x == types.float64:
        return lambda x: _exp_down64(x)
    return None


def normal_cdf(x: Any) -> Any:
    """Probability that a standard normal is below x, erfc(-x / sqrt 2) / 2."""
    return type(x)(math.erfc(-x / math.sqrt(2)) / 2)


def _fit_log_tail() -> list[float]:
    """Polynomial, highest power first, for log erfc(t) on 0 <= t <= 4.3, nearly a parabola; erfc follows to 1e-8."""
    t = 4.3 * (1 - np.cos(np.pi * np.linspace(0, 1, 2001))) / 2
    log_tail = np.log([math.erfc(value) for value in t])
    fitted = np.polynomial.Polynomial.fit(t, log_tail, 11, w=np.exp(0.3 * log_tail) + 0.03)
    return fitted.convert().coef[::-1].tolist()


_log_tail32 = _polynomial(_fit_log_tail())
_SQRT_HALF32, _HALF32, _ONE32, _ZERO32, _LAST32 = (np.float32(v) for v in (math.sqrt(0.5), 0.5, 1.0, 0.0, 4.3))
_SQRT_HALF64 = math.sqrt(0.5)


@njit(fastmath=EXACT, error_model="numpy", forceinline=True)
def _normal_cdf32(x):  # type: ignore[no-untyped-def]
    t = abs(x) * _SQRT_HALF32
    inside = t if t < _LAST32 else _LAST32
    tail = _HALF32 * _exp_down32(_log_tail32(inside))
    tail = tail if t <= _LAST32 else _ZERO32  # the true value is below 6e-10
    value = tail if x < _ZERO32 else _ONE32 - tail
    return value if x == x else x


@overload(normal_cdf, jit_options=INLINED)
def _normal_cdf(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: _normal_cdf32(x)
    if x == types.float64:
        return lambda x: 0.5 * math.erfc(-x * _SQRT_HALF64)
    return None


_QUARTER_HIGH = math.ldexp(round(math.ldexp(math.pi / 2, 32)), -32)  # times a whole number below 2**20 is exact
_QUARTER_MID = math.pi / 2 - _QUARTER_HIGH
_QUARTER_LOW = math.cos(math.pi / 2)  # what the double nearest pi / 2 lacks
_PER_QUARTER = 2 / math.pi
_sin_series = _polynomial([(-1) ** k / math.factorial(2 * k + 1) for k in range(8, -1, -1)])
_cos_series = _polynomial([(-1) ** k / math.factorial(2 * k) for k in range(8, -1, -1)])


@njit(fastmath=EXACT, error_model="numpy", forceinline=True)
def sincos(angle):  # type: ignore[no-untyped-def]
    """Sine and cosine of a float64 angle below 1.6 million radians in size."""
    quarters = nearest(angle * _PER_QUARTER)
    r = ((angle - quarters * _QUARTER_HIGH) - quarters * _QUARTER_MID) - quarters * _QUARTER_LOW
    square = r * r
    sine, cosine = r * _sin_series(square), _cos_series(square)
    half = 0.5 * quarters
    odd = half != nearest(half)
    flipped = 0.5 * nearest(0.5 * (quarters - (1.0 if odd else 0.0)))
    sign = -1.0 if flipped != nearest(flipped) else 1.0
    sine, cosine = (cosine, -sine) if odd else (sine, cosine)
    return sign * sine, sign * cosine


@njit(fastmath=SUMMED, error_model="numpy")
def row_max(row):  # type: ignore[no-untyped-def]
    """Largest element of a contiguous row: -inf for none, NaN if any is."""
    largest = row.dtype.type(-np.inf)
    for i in range(row.size):
        largest = maximum(largest, row[i])
    return largest


@njit(fastmath=SUMMED, error_model="numpy")
def row_sum(row):  # type: ignore[no-untyped-def]
    """Sum of a contiguous row."""
    total = row.dtype.type(0)
    for i in range(row.size):
        total += row[i]
    return total


@njit(fastmath=SUMMED, error_model="numpy")
def row_dot(left, right):  # type: ignore[no-untyped-def]
    """Sum of products of two contiguous rows."""
    total = left.dtype.type(0)
    for i in range(left.size):
        total += left[i] * right[i]
    return total


def like(x: Any, value: Any) -> Any:
    """`value` in the dtype of `x`: a plain 0.5 would widen a float32 loop to float64."""
    return type(x)(value)


@overload(like, jit_options=INLINED)
def _like(x, value):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x, value: np.float32(value)
    if x == types.float64:
        return lambda x, value: np.float64(value)
    return None


BLOCKS = 16
"""Parts that column sums over rows are split into, whatever the number of threads: same inputs, same bytes."""


def as_rows(array: np.ndarray) -> np.ndarray:
    """The array as contiguous rows of its last axis, copied only if it must be."""
    rows = 1
    for size in array.shape[:-1]:
        rows *= size
    return np.ascontiguousarray(array).reshape(rows, array.shape[-1])
