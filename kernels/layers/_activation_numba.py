"""Activations and their derivatives as scalar functions that inline into a vector loop; the name is a compile-time number."""

import math

import numpy as np
from numba import njit

from llmlab.kernels.numba_math import EXACT, exp, exp_down, like, normal_cdf
from llmlab.reference.layers._activation import named

KINDS = ("gelu", "gelu_tanh", "silu", "relu", "relu2")
CHUNK = 16384  # elements per parallel step: 64 KiB of float32

_GELU, _GELU_TANH, _SILU, _RELU, _RELU2 = range(5)
_INNER, _CUBIC, _DENSITY = 2 * math.sqrt(2 / math.pi), 0.044715, (2 * math.pi) ** -0.5


def code_of(kind: str) -> int:
    """The number of an activation; ValueError for an unknown name, with the reference's words."""
    named(kind)
    return KINDS.index(kind)


@njit(fastmath=EXACT, error_model="numpy", forceinline=True)
def value(x, code):
    """The activation called `KINDS[code]` at x."""
    one, zero = like(x, 1), like(x, 0)
    if code == _GELU:
        return x * normal_cdf(x)
    if code == _GELU_TANH:  # (1 + tanh u) / 2 is the logistic function of 2 u
        return x / (one + exp(-like(x, _INNER) * (x + like(x, _CUBIC) * x * x * x)))
    if code == _SILU:
        return x / (one + exp(-x))
    positive = zero if x < zero else x  # NaN stays
    return positive if code == _RELU else positive * positive


@njit(fastmath=EXACT, error_model="numpy", forceinline=True)
def slope(x, code):
    """Its derivative at x."""
    one, zero = like(x, 1), like(x, 0)
    if code == _GELU:
        return normal_cdf(x) + x * exp_down(-x * x * like(x, 0.5)) * like(x, _DENSITY)
    if code == _GELU_TANH:
        s = one / (one + exp(-like(x, _INNER) * (x + like(x, _CUBIC) * x * x * x)))
        return s + x * s * (one - s) * like(x, _INNER) * (one + like(x, 3 * _CUBIC) * x * x)
    if code == _SILU:
        s = one / (one + exp(-x))
        return s * (one + x * (one - s))
    if code == _RELU:
        return one if x > zero else zero
    return x + x if x > zero else zero


def flat(array: np.ndarray) -> np.ndarray:
    """All elements in order as one contiguous vector, copied only if they must be."""
    return np.ascontiguousarray(array).reshape(-1)
