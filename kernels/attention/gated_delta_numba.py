"""Gated delta rule on CPU cores: per chunk one triangular system solved by register tiles, the state in a core's cache."""

from __future__ import annotations

import numpy as np

from llmlab.kernels.attention._decayed_numba import walk
from llmlab.kernels.twin import twin
from llmlab.reference.attention.gated_delta import GATED_DELTA, SOLVED, require_one_length


@twin(GATED_DELTA, backend="numba", looser=SOLVED, tolerance_factor=2.0)
def gated_delta(
    q_BTKM: np.ndarray,
    k_BTKM: np.ndarray,
    v_BTKGH: np.ndarray,
    beta_BTKG: np.ndarray,
    log_decay_BTKG: np.ndarray,
    state_BKGMH: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    require_one_length(q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG)
    out, state, _ = walk(q_BTKM, k_BTKM, v_BTKGH, state_BKGMH, logs_BTKG=log_decay_BTKG, beta_BTKG=beta_BTKG)
    return out, state
