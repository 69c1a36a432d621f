"""Gated linear units on the CPU: chunks in parallel, activation and product in one pass."""

from typing import Any

import numpy as np
from numba import njit, prange

from llmlab.kernels.layers._activation_numba import CHUNK, KINDS, code_of, flat, slope, value
from llmlab.kernels.numba_math import EXACT
from llmlab.kernels.twin import twin
from llmlab.reference.layers.glu import GLU


@twin(GLU, backend="numba")
def glu(gate_BTF: np.ndarray, up_BTF: np.ndarray, *, kind: str = "silu") -> np.ndarray:
    gate, up = flat(gate_BTF), flat(up_BTF)
    out = np.empty_like(gate)
    _FORWARD[code_of(kind)](gate, up, out)
    return out.reshape(gate_BTF.shape)


@twin(GLU, backend="numba", of="backward")
def glu_backward(
    dout_BTF: np.ndarray, gate_BTF: np.ndarray, up_BTF: np.ndarray, *, kind: str = "silu"
) -> tuple[np.ndarray, np.ndarray]:
    gate, up = flat(gate_BTF), flat(up_BTF)
    dgate, dup = np.empty_like(gate), np.empty_like(gate)
    _BACKWARD[code_of(kind)](flat(dout_BTF), gate, up, dgate, dup)
    return dgate.reshape(gate_BTF.shape), dup.reshape(gate_BTF.shape)


def _make_forward(code: int) -> Any:
    @njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
    def forward(gate, up, out):
        for c in prange((gate.size + CHUNK - 1) // CHUNK):
            lo, hi = c * CHUNK, (c + 1) * CHUNK
            g, u, result = gate[lo:hi], up[lo:hi], out[lo:hi]
            for i in range(g.size):
                result[i] = value(g[i], code) * u[i]

    return forward


def _make_backward(code: int) -> Any:
    @njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
    def backward(dout, gate, up, dgate, dup):
        for c in prange((gate.size + CHUNK - 1) // CHUNK):
            lo, hi = c * CHUNK, (c + 1) * CHUNK
            g, u, given, to_gate, to_up = gate[lo:hi], up[lo:hi], dout[lo:hi], dgate[lo:hi], dup[lo:hi]
            for i in range(g.size):
                to_gate[i] = given[i] * u[i] * slope(g[i], code)
                to_up[i] = given[i] * value(g[i], code)

    return backward


_FORWARD = [_make_forward(code) for code in range(len(KINDS))]
_BACKWARD = [_make_backward(code) for code in range(len(KINDS))]
