"""Residual addition and RMS normalization on the CPU: rows in parallel, the sum stays in cache for the normalization."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.layers.rms_norm_numba import row_backward, scale_of
from llmlab.kernels.numba_math import BLOCKS, SUMMED, as_rows
from llmlab.kernels.twin import twin
from llmlab.reference.layers.add_rms_norm import ADD_RMS_NORM


@twin(ADD_RMS_NORM, backend="numba")
def add_rms_norm(
    x_BTD: np.ndarray, residual_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    x_MD, residual_MD = as_rows(x_BTD), as_rows(residual_BTD)
    normed_MD, stream_MD = np.empty_like(x_MD), np.empty_like(x_MD)
    _forward(x_MD, residual_MD, np.ascontiguousarray(weight_D), x_MD.dtype.type(eps), normed_MD, stream_MD)
    return normed_MD.reshape(x_BTD.shape), stream_MD.reshape(x_BTD.shape)


@twin(ADD_RMS_NORM, backend="numba", of="backward")
def add_rms_norm_backward(
    dnormed_BTD: np.ndarray,
    dstream_BTD: np.ndarray,
    x_BTD: np.ndarray,
    residual_BTD: np.ndarray,
    weight_D: np.ndarray,
    *,
    eps: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x_MD = as_rows(x_BTD)
    dsum_MD, parts_PD = np.empty_like(x_MD), np.zeros((BLOCKS, weight_D.size), x_MD.dtype)
    given = as_rows(dnormed_BTD), as_rows(dstream_BTD), x_MD, as_rows(residual_BTD), np.ascontiguousarray(weight_D)
    _backward(*given, x_MD.dtype.type(eps), dsum_MD, parts_PD)
    dsum_BTD = dsum_MD.reshape(x_BTD.shape)
    return dsum_BTD, dsum_BTD.copy(), parts_PD.sum(0)


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _forward(x_MD, residual_MD, weight_D, eps, normed_MD, stream_MD):
    for m in prange(x_MD.shape[0]):
        x, residual, stream, normed = x_MD[m], residual_MD[m], stream_MD[m], normed_MD[m]
        for d in range(x.size):
            stream[d] = residual[d] + x[d]
        scale = scale_of(stream, eps)
        for d in range(x.size):
            normed[d] = stream[d] * scale * weight_D[d]


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _backward(dnormed_MD, dstream_MD, x_MD, residual_MD, weight_D, eps, dsum_MD, parts_PD):
    M, parts = x_MD.shape[0], parts_PD.shape[0]
    for p in prange(parts):
        stream = np.empty_like(weight_D)
        for m in range(p * M // parts, (p + 1) * M // parts):
            x, residual, dstream, dsum = x_MD[m], residual_MD[m], dstream_MD[m], dsum_MD[m]
            for d in range(x.size):
                stream[d] = residual[d] + x[d]
            row_backward(dnormed_MD[m], stream, weight_D, eps, dsum, parts_PD[p])
            for d in range(x.size):
                dsum[d] += dstream[d]
