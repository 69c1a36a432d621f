"""Cross-entropy on the CPU: positions in parallel, online log-sum-exp in one pass over the logits."""

import numpy as np
from numba import njit, prange

from llmlab.kernels.numba_math import EXACT, SUMMED, as_rows, exp_down, maximum, row_max, row_sum
from llmlab.kernels.twin import twin
from llmlab.reference.layers.cross_entropy import CROSS_ENTROPY, checked_targets

CHUNK = 1024
CEILING = 80.0
"""Logits are exponentiated at most this far above the shift: finite in float32, and far too large to be kept."""
SURPRISE = 1e6
"""A chunk whose exponentials sum to more than this is done again with its own maximum as the shift."""


@twin(CROSS_ENTROPY, backend="numba")
def cross_entropy(
    logits_BTV: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    logits_MV = as_rows(logits_BTV)
    checked_targets(logits_MV.shape[1], targets_BT, label_smoothing, ignore_index)
    kind = logits_MV.dtype.type
    loss_M = np.empty(logits_MV.shape[0], logits_MV.dtype)
    targets_M = np.ascontiguousarray(targets_BT).reshape(-1)
    losses(logits_MV, targets_M, kind(label_smoothing), kind(z_loss), ignore_index, loss_M)
    return loss_M.reshape(targets_BT.shape)


@twin(CROSS_ENTROPY, backend="numba", of="backward")
def cross_entropy_backward(
    dloss_BT: np.ndarray,
    logits_BTV: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> tuple[np.ndarray, None]:
    logits_MV = as_rows(logits_BTV)
    checked_targets(logits_MV.shape[1], targets_BT, label_smoothing, ignore_index)
    kind = logits_MV.dtype.type
    dlogits_MV = np.empty_like(logits_MV)
    dloss_M, targets_M = (np.ascontiguousarray(array).reshape(-1) for array in (dloss_BT, targets_BT))
    gradients(dloss_M, logits_MV, targets_M, kind(label_smoothing), kind(z_loss), ignore_index, dlogits_MV)
    return dlogits_MV.reshape(logits_BTV.shape), None


@njit(fastmath=SUMMED, error_model="numpy")
def _sum_exp(part, shift):
    ceiling, total = part.dtype.type(CEILING), part.dtype.type(0)
    for v in range(part.size):
        above = part[v] - shift
        total += exp_down(ceiling if above > ceiling else above)  # NaN stays
    return total


@njit(fastmath=SUMMED, error_model="numpy")
def log_sum_exp(row):
    """log sum exp of one row, read once; the shift is the maximum of the first chunk, or of one that came as a surprise."""
    kind = row.dtype.type
    lowest = kind(-np.inf)
    shift, total = lowest, kind(0)
    for start in range(0, row.size, CHUNK):
        part = row[start : start + CHUNK]
        part_total = kind(np.inf) if shift == lowest else _sum_exp(part, shift)
        if not part_total < kind(SURPRISE):  # or NaN
            higher = maximum(shift, row_max(part))
            if higher == lowest:
                continue
            total *= kind(0) if shift == lowest else exp_down(shift - higher)
            shift = higher
            part_total = _sum_exp(part, shift)
        total += part_total
    return shift + np.log(total)


@njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
def losses(logits_MV, targets_M, smoothing, z_loss, ignore_index, loss_M):
    """Write every position's loss."""
    kind = logits_MV.dtype.type
    for m in prange(logits_MV.shape[0]):
        if targets_M[m] == ignore_index:
            loss_M[m] = kind(0)
            continue
        row = logits_MV[m]
        lse = log_sum_exp(row)
        target = row[targets_M[m]]
        loss = lse - target
        if smoothing != kind(0):
            loss += smoothing * (target - row_sum(row) / kind(row.size))
        if z_loss != kind(0):
            loss += z_loss * lse * lse
        loss_M[m] = loss


@njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
def gradients(dloss_M, logits_MV, targets_M, smoothing, z_loss, ignore_index, dlogits_MV):
    """Write the gradient of every logit; `dlogits_MV` may be `logits_MV` itself."""
    kind = logits_MV.dtype.type
    for m in prange(logits_MV.shape[0]):
        row, out = logits_MV[m], dlogits_MV[m]
        if targets_M[m] == ignore_index:
            out[:] = kind(0)
            continue
        lse, pull = log_sum_exp(row), dloss_M[m]
        push, even = pull * (kind(1) + kind(2) * z_loss * lse), pull * smoothing / kind(row.size)
        for v in range(row.size):
            out[v] = push * exp_down(row[v] - lse) - even
        out[targets_M[m]] -= (kind(1) - smoothing) * pull
