"""Mamba-2 on CPU cores: the scores of a chunk are shared by the heads of a group, each head's state stays in a core's cache."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._decayed_numba import walk
from llmlab.kernels.twin import twin
from llmlab.reference.attention.mamba2 import MAMBA2, require_one_length


@twin(MAMBA2, backend="numba")
def mamba2(
    x_BTKGH: np.ndarray,
    dt_BTKG: np.ndarray,
    a_KG: np.ndarray,
    b_BTKM: np.ndarray,
    c_BTKM: np.ndarray,
    d_KG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    require_one_length(x_BTKGH, dt_BTKG, b_BTKM, c_BTKM)
    out, state, _ = walk(c_BTKM, b_BTKM, x_BTKGH, state_BKGMH, logs_BTKG=dt_BTKG * a_KG, gain_BTKG=dt_BTKG, skip_KG=d_KG)
    return out, state
