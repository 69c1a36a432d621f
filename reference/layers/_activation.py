"""The activation functions by name, each with its derivative; `layers.activations` and `layers.glu` share them."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

import numpy as np

Array = np.ndarray

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def normal_cdf(x: Array) -> Array:
    """Probability that a standard normal lies below x, formed in float64 and rounded to x's dtype."""
    return (_erfc(-x.astype(np.float64) * math.sqrt(0.5)) / 2).astype(x.dtype)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); the exponential overflows to infinity, which is right."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _gelu(x: Array) -> Array:
    return x * normal_cdf(x)


def _gelu_slope(x: Array) -> Array:
    return normal_cdf(x) + x * np.exp(-x * x / 2) * (2 * math.pi) ** -0.5


def _tanh_argument(x: Array) -> Array:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(_tanh_argument(x)))


def _gelu_tanh_slope(x: Array) -> Array:
    tanh = np.tanh(_tanh_argument(x))
    dargument = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * dargument


def _silu(x: Array) -> Array:
    return x * sigmoid(x)


def _silu_slope(x: Array) -> Array:
    return sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _relu_slope(x: Array) -> Array:
    return (x > 0).astype(x.dtype)


def _relu2(x: Array) -> Array:
    return np.maximum(x, 0) ** 2


def _relu2_slope(x: Array) -> Array:
    return 2 * np.maximum(x, 0)


FUNCTIONS: MappingProxyType[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = MappingProxyType(
    {
        "gelu": (_gelu, _gelu_slope),
        "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
        "silu": (_silu, _silu_slope),
        "relu": (_relu, _relu_slope),
        "relu2": (_relu2, _relu2_slope),
    }
)
"""Name -> (function, derivative)."""


def named(kind: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return (function, derivative) of the activation called `kind`.

    Raises:
        ValueError: no activation has that name.
    """
    if kind not in FUNCTIONS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[kind]
