"""RMS normalization on the CPU: rows in parallel, one read from memory, the second pass over the row hits the cache."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import BLOCKS, SUMMED, as_rows, row_dot
from llmlab.kernels.streaming_stores import STRIP, output_like, rows_per_part, settle, stream
from llmlab.kernels.twin import twin
from llmlab.reference.layers.rms_norm import RMS_NORM


@twin(RMS_NORM, backend="numba")
def rms_norm(x_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    x_MD = as_rows(x_BTD)
    out_MD, streamed = output_like(x_MD)
    _forward(x_MD, np.ascontiguousarray(weight_D), x_MD.dtype.type(eps), out_MD, streamed)
    return out_MD.reshape(x_BTD.shape)


@twin(RMS_NORM, backend="numba", of="backward")
def rms_norm_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    dout_MD, x_MD = as_rows(dout_BTD), as_rows(x_BTD)
    dx_MD, parts_PD = np.empty_like(x_MD), np.zeros((BLOCKS, weight_D.size), x_MD.dtype)
    _backward(dout_MD, x_MD, np.ascontiguousarray(weight_D), x_MD.dtype.type(eps), dx_MD, parts_PD)
    return dx_MD.reshape(x_BTD.shape), parts_PD.sum(0)


@njit(fastmath=SUMMED, error_model="numpy")
def scale_of(row, eps):
    """1 / root mean square."""
    one = row.dtype.type(1)
    return one / np.sqrt(row_dot(row, row) / row.dtype.type(row.size) + eps)


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _forward(x_MD, weight_D, eps, out_MD, streamed):
    M, D = x_MD.shape
    rows, width = rows_per_part(x_MD, streamed), STRIP if streamed else D
    for part in prange((M + rows - 1) // rows):
        strip = np.empty(STRIP if streamed else 0, x_MD.dtype)
        for m in range(part * rows, min((part + 1) * rows, M)):
            scale = scale_of(x_MD[m], eps)
            for start in range(0, D, width):
                row, out = x_MD[m, start : start + width], out_MD[m, start : start + width]
                weight = weight_D[start : start + width]
                written = strip[: out.size] if streamed else out
                for d in range(row.size):
                    written[d] = row[d] * scale * weight[d]
                if streamed:
                    stream(written, out, x_MD[min(m + 1, M - 1), start : start + width])
        if streamed:
            settle()


@njit(fastmath=SUMMED, error_model="numpy")
def row_backward(dout, row, weight_D, eps, dx, dweight):
    """Write one row's dx and add its share of dweight."""
    size = row.dtype.type(row.size)
    scale = scale_of(row, eps)
    along = row.dtype.type(0)
    for d in range(row.size):
        along += dout[d] * weight_D[d] * row[d]
    along = along * scale * scale / size
    for d in range(row.size):
        dx[d] = scale * (dout[d] * weight_D[d] - row[d] * along)
        dweight[d] += dout[d] * row[d] * scale


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _backward(dout_MD, x_MD, weight_D, eps, dx_MD, parts_PD):
    M, parts = x_MD.shape[0], parts_PD.shape[0]
    for p in prange(parts):
        for m in range(p * M // parts, (p + 1) * M // parts):
            row_backward(dout_MD[m], x_MD[m], weight_D, eps, dx_MD[m], parts_PD[p])
