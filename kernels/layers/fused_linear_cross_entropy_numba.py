"""Projection and cross-entropy on the CPU: BLAS makes some positions' logits, the loss kernel consumes them in place."""

from collections.abc import Iterator

import numpy as np

from llmlab.kernels.layers.cross_entropy_numba import gradients, losses
from llmlab.kernels.numba_math import as_rows
from llmlab.kernels.twin import twin
from llmlab.reference.layers.cross_entropy import checked_targets
from llmlab.reference.layers.fused_linear_cross_entropy import FUSED_LINEAR_CROSS_ENTROPY

LOGITS_ALIVE = 2**23  # 32 MiB of float32: enough rows for BLAS, little enough to stay out of the way


@twin(FUSED_LINEAR_CROSS_ENTROPY, backend="numba")
def fused_linear_cross_entropy(
    hidden_BTD: np.ndarray,
    weight_VD: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    checked_targets(weight_VD.shape[0], targets_BT, label_smoothing, ignore_index)
    hidden_MD, targets_M = as_rows(hidden_BTD), np.ascontiguousarray(targets_BT).reshape(-1)
    loss_M = np.empty(targets_M.size, hidden_MD.dtype)
    smoothing, z = hidden_MD.dtype.type(label_smoothing), hidden_MD.dtype.type(z_loss)
    for some in _slices(targets_M.size, weight_VD.shape[0]):
        logits_CV = hidden_MD[some] @ weight_VD.T
        losses(logits_CV, targets_M[some], smoothing, z, ignore_index, loss_M[some])
    return loss_M.reshape(targets_BT.shape)


@twin(FUSED_LINEAR_CROSS_ENTROPY, backend="numba", of="backward")
def fused_linear_cross_entropy_backward(
    dloss_BT: np.ndarray,
    hidden_BTD: np.ndarray,
    weight_VD: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> tuple[np.ndarray, np.ndarray, None]:
    checked_targets(weight_VD.shape[0], targets_BT, label_smoothing, ignore_index)
    hidden_MD = as_rows(hidden_BTD)
    dloss_M, targets_M = (np.ascontiguousarray(array).reshape(-1) for array in (dloss_BT, targets_BT))
    dhidden_MD, dweight_VD = np.empty_like(hidden_MD), np.zeros(weight_VD.shape, weight_VD.dtype)
    smoothing, z = hidden_MD.dtype.type(label_smoothing), hidden_MD.dtype.type(z_loss)
    for some in _slices(targets_M.size, weight_VD.shape[0]):
        logits_CV = hidden_MD[some] @ weight_VD.T
        gradients(dloss_M[some], logits_CV, targets_M[some], smoothing, z, ignore_index, logits_CV)
        dhidden_MD[some] = logits_CV @ weight_VD
        dweight_VD += logits_CV.T @ hidden_MD[some]
    return dhidden_MD.reshape(hidden_BTD.shape), dweight_VD, None


def _slices(positions: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, LOGITS_ALIVE // max(vocabulary, 1))
    return (slice(start, start + step) for start in range(0, positions, step))
