"""Rotary embedding on the CPU: positions in parallel; sines and cosines once per position in float64, shared by its heads."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import EXACT, sincos
from llmlab.kernels.twin import twin
from llmlab.reference.positions.rope import ROPE, inverse_frequencies

TOKENS = 8  # positions per parallel step, which share one table


@twin(ROPE, backend="numba")
def rope(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    frequencies: np.ndarray | None = None,
) -> np.ndarray:
    frequencies_R = inverse_frequencies(x_BTNH.shape[-1], theta) if frequencies is None else frequencies
    return rotate(x_BTNH, positions_BT, frequencies_R, interleaved=interleaved, direction=1.0)


@twin(ROPE, backend="numba", of="backward")
def rope_backward(
    dout_BTNH: np.ndarray,
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    frequencies: np.ndarray | None = None,
) -> tuple[np.ndarray, None]:
    frequencies_R = inverse_frequencies(x_BTNH.shape[-1], theta) if frequencies is None else frequencies
    return rotate(dout_BTNH, positions_BT, frequencies_R, interleaved=interleaved, direction=-1.0), None


def rotate(
    x_BTNH: np.ndarray, positions_BT: np.ndarray, frequencies_R: np.ndarray, *, interleaved: bool, direction: float
) -> np.ndarray:
    """Turn every pair by direction * position * frequency."""
    B, T, N, H = x_BTNH.shape
    frequencies_R = np.asarray(frequencies_R, np.float64)
    if 2 * frequencies_R.size != H:
        raise ValueError(f"{frequencies_R.size} frequencies do not make H={H} a head of pairs")
    x_MNH = np.ascontiguousarray(x_BTNH).reshape(B * T, N, H)
    out_MNH = np.empty_like(x_MNH)
    positions_M = np.ascontiguousarray(positions_BT).reshape(-1)
    kernel = _interleaved if interleaved else _halves
    kernel(x_MNH, positions_M, direction * frequencies_R, out_MNH)
    return out_MNH.reshape(x_BTNH.shape)


@njit(fastmath=EXACT, error_model="numpy")
def _table(position, frequencies_R, cos_R, sin_R):
    for r in range(frequencies_R.size):
        sine, cosine = sincos(position * frequencies_R[r])
        cos_R[r] = cosine
        sin_R[r] = sine


@njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
def _halves(x_MNH, positions_M, frequencies_R, out_MNH):
    M, N, H = x_MNH.shape
    R = H // 2
    for block in prange((M + TOKENS - 1) // TOKENS):
        cos_R, sin_R = np.empty(R, x_MNH.dtype), np.empty(R, x_MNH.dtype)
        for m in range(block * TOKENS, min((block + 1) * TOKENS, M)):
            _table(np.float64(positions_M[m]), frequencies_R, cos_R, sin_R)
            for n in range(N):
                x, out = x_MNH[m, n], out_MNH[m, n]
                for r in range(R):
                    a, b = x[r], x[R + r]
                    out[r] = a * cos_R[r] - b * sin_R[r]
                    out[R + r] = b * cos_R[r] + a * sin_R[r]


@njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
def _interleaved(x_MNH, positions_M, frequencies_R, out_MNH):
    M, N, H = x_MNH.shape
    R = H // 2
    for block in prange((M + TOKENS - 1) // TOKENS):
        cos_R, sin_R = np.empty(R, x_MNH.dtype), np.empty(R, x_MNH.dtype)
        for m in range(block * TOKENS, min((block + 1) * TOKENS, M)):
            _table(np.float64(positions_M[m]), frequencies_R, cos_R, sin_R)
            for n in range(N):
                x, out = x_MNH[m, n], out_MNH[m, n]
                for r in range(R):
                    a, b = x[2 * r], x[2 * r + 1]
                    out[2 * r] = a * cos_R[r] - b * sin_R[r]
                    out[2 * r + 1] = b * cos_R[r] + a * sin_R[r]
