"""Pointwise activations on the CPU: chunks in parallel, polynomial exponentials in vector registers."""

from typing import Any

import numpy as np
from numba import njit, prange

from llmlab.kernels.layers._activation_numba import CHUNK, KINDS, code_of, flat, slope, value
from llmlab.kernels.numba_math import EXACT
from llmlab.kernels.twin import twin
from llmlab.reference.layers.activations import ACTIVATIONS


@twin(ACTIVATIONS, backend="numba")
def activations(x_BTF: np.ndarray, *, kind: str = "gelu") -> np.ndarray:
    x = flat(x_BTF)
    out = np.empty_like(x)
    _FORWARD[code_of(kind)](x, out)
    return out.reshape(x_BTF.shape)


@twin(ACTIVATIONS, backend="numba", of="backward")
def activations_backward(dout_BTF: np.ndarray, x_BTF: np.ndarray, *, kind: str = "gelu") -> tuple[np.ndarray]:
    x = flat(x_BTF)
    dx = np.empty_like(x)
    _BACKWARD[code_of(kind)](flat(dout_BTF), x, dx)
    return (dx.reshape(x_BTF.shape),)


def _make_forward(code: int) -> Any:
    @njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
    def forward(x, out):
        for c in prange((x.size + CHUNK - 1) // CHUNK):
            part, result = x[c * CHUNK : (c + 1) * CHUNK], out[c * CHUNK : (c + 1) * CHUNK]
            for i in range(part.size):
                result[i] = value(part[i], code)

    return forward


def _make_backward(code: int) -> Any:
    @njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
    def backward(dout, x, dx):
        for c in prange((x.size + CHUNK - 1) // CHUNK):
            lo, hi = c * CHUNK, (c + 1) * CHUNK
            part, given, result = x[lo:hi], dout[lo:hi], dx[lo:hi]
            for i in range(part.size):
                result[i] = given[i] * slope(part[i], code)

    return backward


_FORWARD = [_make_forward(code) for code in range(len(KINDS))]
_BACKWARD = [_make_backward(code) for code in range(len(KINDS))]
