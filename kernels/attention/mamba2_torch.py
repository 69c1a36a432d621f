"""Mamba-2 by batched matrix products over chunks, the scores of a group shared by its heads."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._decayed_torch import walk, working
from llmlab.kernels.twin import twin
from llmlab.reference.attention.mamba2 import MAMBA2, require_one_length


@twin(MAMBA2, backend="torch")
def mamba2(
    x_BTKGH: Tensor, dt_BTKG: Tensor, a_KG: Tensor, b_BTKM: Tensor, c_BTKM: Tensor, d_KG: Tensor, state_BKGMH: Tensor
) -> tuple[Tensor, Tensor]:
    require_one_length(x_BTKGH, dt_BTKG, b_BTKM, c_BTKM)
    x, dt, a, b, c, d, state = (working(one) for one in (x_BTKGH, dt_BTKG, a_KG, b_BTKM, c_BTKM, d_KG, state_BKGMH))
    out_BTKGH, after_BKGMH = walk(c, b, dt[..., None] * x, dt * a, state)
    return (out_BTKGH + d[..., None] * x).to(x_BTKGH.dtype), after_BKGMH.to(x_BTKGH.dtype)
