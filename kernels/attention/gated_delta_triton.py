"""Gated delta rule on the GPU: all triangular systems at once, then the states of all chunks, then every chunk by itself."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._decayed_triton import walk, walk_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention.gated_delta import GATED_DELTA, SOLVED, require_one_length


@twin(GATED_DELTA, backend="triton", looser=SOLVED, tolerance_factor=4.0)
def gated_delta(
    q_BTKM: Tensor, k_BTKM: Tensor, v_BTKGH: Tensor, beta_BTKG: Tensor, log_decay_BTKG: Tensor, state_BKGMH: Tensor
) -> tuple[Tensor, Tensor]:
    require_one_length(q_BTKM, k_BTKM, v_BTKGH, beta_BTKG, log_decay_BTKG)
    out, state, _ = walk(q_BTKM, k_BTKM, v_BTKGH, state_BKGMH, logs_BTKG=log_decay_BTKG, beta_BTKG=beta_BTKG)
    return out, state


AOT = walk_ahead("bf16", 16, 2, 128, 128, kind="gated_delta")
