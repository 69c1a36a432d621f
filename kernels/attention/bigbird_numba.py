"""BigBird's attention on CPU cores: per head, the blocks each block sees gathered for register tiles."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._gathered_numba import GatheredSets
from llmlab.kernels.attention._tiles_numba import CANCELS
from llmlab.kernels.twin import twin
from llmlab.reference.attention.bigbird import BIGBIRD, block_groups


@twin(BIGBIRD, backend="numba")
def bigbird(q_BTNH: np.ndarray, k_BTNH: np.ndarray, v_BTNH: np.ndarray, random_NMR: np.ndarray) -> np.ndarray:
    out_BTNH = np.zeros_like(q_BTNH)
    for head, random_MR in enumerate(random_NMR):
        sets = _sets(q_BTNH.shape[1], random_MR)
        for b in range(len(q_BTNH)):
            at = np.s_[b, :, head]
            sets.attend(q_BTNH[at][:, None], k_BTNH[at], v_BTNH[at], out_BTNH[at][:, None], causal=False)
    return out_BTNH


@twin(BIGBIRD, backend="numba", of="backward", looser=CANCELS, tolerance_factor=4.0)
def bigbird_backward(
    dout_BTNH: np.ndarray, q_BTNH: np.ndarray, k_BTNH: np.ndarray, v_BTNH: np.ndarray, random_NMR: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    dq_BTNH, dk_BTNH, dv_BTNH = np.zeros_like(q_BTNH), np.zeros_like(k_BTNH), np.zeros_like(v_BTNH)
    for head, random_MR in enumerate(random_NMR):
        sets = _sets(q_BTNH.shape[1], random_MR)
        for b in range(len(q_BTNH)):
            at = np.s_[b, :, head]
            gradients = dq_BTNH[at][:, None], dk_BTNH[at], dv_BTNH[at]
            sets.attend_backward(dout_BTNH[at][:, None], q_BTNH[at][:, None], k_BTNH[at], v_BTNH[at], gradients, causal=False)
    return dq_BTNH, dk_BTNH, dv_BTNH, None


def _sets(T: int, random_MR: np.ndarray) -> GatheredSets:
    groups = block_groups(T, random_MR)
    return GatheredSets([group.queries for group in groups], [group.keys for group in groups])
