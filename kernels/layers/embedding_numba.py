"""Embedding on the CPU: positions in parallel; backward, columns in parallel, so that no two threads add to one number."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import as_rows
from llmlab.kernels.twin import twin
from llmlab.reference.layers.embedding import EMBEDDING, check_ids


@twin(EMBEDDING, backend="numba")
def embedding(ids_BT: np.ndarray, weight_VD: np.ndarray, *, padding_index: int | None = None) -> np.ndarray:
    check_ids(ids_BT, weight_VD.shape[0], padding_index)
    ids_M = np.ascontiguousarray(ids_BT).reshape(-1)
    out_MD = np.empty((ids_M.size, weight_VD.shape[1]), weight_VD.dtype)
    _gather(ids_M, np.ascontiguousarray(weight_VD), out_MD)
    return out_MD.reshape(*ids_BT.shape, weight_VD.shape[1])


@twin(EMBEDDING, backend="numba", of="backward")
def embedding_backward(
    dout_BTD: np.ndarray, ids_BT: np.ndarray, weight_VD: np.ndarray, *, padding_index: int | None = None
) -> tuple[None, np.ndarray]:
    check_ids(ids_BT, weight_VD.shape[0], padding_index)
    dweight_VD = np.zeros(weight_VD.shape, weight_VD.dtype)
    skipped = -1 if padding_index is None else padding_index
    _scatter(as_rows(dout_BTD), np.ascontiguousarray(ids_BT).reshape(-1), skipped, dweight_VD)
    return None, dweight_VD


@njit(parallel=True, cache=True)
def _gather(ids_M, weight_VD, out_MD):
    for m in prange(ids_M.size):
        row, out = weight_VD[ids_M[m]], out_MD[m]
        for d in range(row.size):
            out[d] = row[d]


@njit(parallel=True, cache=True)
def _scatter(dout_MD, ids_M, skipped, dweight_VD):
    D = dweight_VD.shape[1]
    width = 64  # columns per thread step: a few cache lines of every row
    for c in prange((D + width - 1) // width):
        lo, hi = c * width, min((c + 1) * width, D)
        for m in range(ids_M.size):
            if ids_M[m] != skipped:
                given, row = dout_MD[m, lo:hi], dweight_VD[ids_M[m], lo:hi]
                for d in range(row.size):
                    row[d] += given[d]
