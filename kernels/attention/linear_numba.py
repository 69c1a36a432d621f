"""Linear attention on CPU cores: chunks of masked register-tile products, heads in parallel, the state in a core's cache."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._decayed_numba import walk
from llmlab.kernels.twin import twin
from llmlab.reference.attention.linear import LINEAR, require_one_length


@twin(LINEAR, backend="numba")
def linear(
    q_BTNM: np.ndarray, k_BTNM: np.ndarray, v_BTNH: np.ndarray, state_BNMH: np.ndarray, total_BNM: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    require_one_length(q_BTNM, k_BTNM, v_BTNH)
    out, state, total = walk(q_BTNM, k_BTNM, v_BTNH[:, :, :, None], state_BNMH[:, :, None], total_BKM=total_BNM, feature=True)
    return out[:, :, :, 0], state[:, :, 0], total
