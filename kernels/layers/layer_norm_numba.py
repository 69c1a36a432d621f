"""Layer normalization on the CPU: rows in parallel, mean and centred variance from the cached row."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import BLOCKS, SUMMED, as_rows, row_sum
from llmlab.kernels.streaming_stores import STRIP, output_like, rows_per_part, settle, stream
from llmlab.kernels.twin import twin
from llmlab.reference.layers.layer_norm import LAYER_NORM


@twin(LAYER_NORM, backend="numba")
def layer_norm(x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, *, eps: float = 1e-5) -> np.ndarray:
    x_MD = as_rows(x_BTD)
    out_MD, streamed = output_like(x_MD)
    weight_D, bias_D = np.ascontiguousarray(weight_D), np.ascontiguousarray(bias_D)
    _forward(x_MD, weight_D, bias_D, x_MD.dtype.type(eps), out_MD, streamed)
    return out_MD.reshape(x_BTD.shape)


@twin(LAYER_NORM, backend="numba", of="backward")
def layer_norm_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, *, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x_MD = as_rows(x_BTD)
    dx_MD, parts_P2D = np.empty_like(x_MD), np.zeros((BLOCKS, 2, weight_D.size), x_MD.dtype)
    _backward(as_rows(dout_BTD), x_MD, np.ascontiguousarray(weight_D), x_MD.dtype.type(eps), dx_MD, parts_P2D)
    dweight_D, dbias_D = parts_P2D.sum(0)
    return dx_MD.reshape(x_BTD.shape), dweight_D, dbias_D


@njit(fastmath=SUMMED, error_model="numpy")
def _mean_and_scale(row, eps):
    size = row.dtype.type(row.size)
    mean = row_sum(row) / size
    square = row.dtype.type(0)
    for d in range(row.size):
        square += (row[d] - mean) * (row[d] - mean)
    return mean, row.dtype.type(1) / np.sqrt(square / size + eps)


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _forward(x_MD, weight_D, bias_D, eps, out_MD, streamed):
    M, D = x_MD.shape
    rows, width = rows_per_part(x_MD, streamed), STRIP if streamed else D
    for part in prange((M + rows - 1) // rows):
        strip = np.empty(STRIP if streamed else 0, x_MD.dtype)
        for m in range(part * rows, min((part + 1) * rows, M)):
            mean, scale = _mean_and_scale(x_MD[m], eps)
            for start in range(0, D, width):
                row, out = x_MD[m, start : start + width], out_MD[m, start : start + width]
                weight, bias = weight_D[start : start + width], bias_D[start : start + width]
                written = strip[: out.size] if streamed else out
                for d in range(row.size):
                    written[d] = (row[d] - mean) * scale * weight[d] + bias[d]
                if streamed:
                    stream(written, out, x_MD[min(m + 1, M - 1), start : start + width])
        if streamed:
            settle()


@njit(fastmath=SUMMED, error_model="numpy")
def _row_backward(dout, row, weight_D, eps, dx, dweight, dbias):
    size = row.dtype.type(row.size)
    mean, scale = _mean_and_scale(row, eps)
    drift, along = row.dtype.type(0), row.dtype.type(0)
    for d in range(row.size):
        dunit = dout[d] * weight_D[d]
        drift += dunit
        along += dunit * (row[d] - mean)
    drift, along = drift / size, along * scale / size
    for d in range(row.size):
        unit = (row[d] - mean) * scale
        dx[d] = scale * (dout[d] * weight_D[d] - drift - unit * along)
        dweight[d] += dout[d] * unit
        dbias[d] += dout[d]


@njit(parallel=True, cache=True, fastmath=SUMMED, error_model="numpy")
def _backward(dout_MD, x_MD, weight_D, eps, dx_MD, parts_P2D):
    M, parts = x_MD.shape[0], parts_P2D.shape[0]
    for p in prange(parts):
        for m in range(p * M // parts, (p + 1) * M // parts):
            _row_backward(dout_MD[m], x_MD[m], weight_D, eps, dx_MD[m], parts_P2D[p, 0], parts_P2D[p, 1])
