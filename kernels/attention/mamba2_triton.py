"""Mamba-2 on the GPU: states of all chunks in one pass, then every chunk by itself as masked products."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._decayed_triton import walk, walk_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention.mamba2 import MAMBA2, require_one_length


@twin(MAMBA2, backend="triton")
def mamba2(
    x_BTKGH: Tensor, dt_BTKG: Tensor, a_KG: Tensor, b_BTKM: Tensor, c_BTKM: Tensor, d_KG: Tensor, state_BKGMH: Tensor
) -> tuple[Tensor, Tensor]:
    require_one_length(x_BTKGH, dt_BTKG, b_BTKM, c_BTKM)
    logs_BTKG = dt_BTKG.float() * a_KG.float()
    out, state, _ = walk(c_BTKM, b_BTKM, x_BTKGH, state_BKGMH, logs_BTKG=logs_BTKG, gain_BTKG=dt_BTKG, skip_KG=d_KG)
    return out, state


AOT = walk_ahead("bf16", 1, 80, 128, 64, kind="mamba2")
