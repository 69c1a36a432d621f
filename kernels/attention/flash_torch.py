"""Flash attention by PyTorch's own fused kernel on CPUs; parallel over heads and blocks of queries, no score matrix."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._fused_torch import RECOMPUTED, attend
from llmlab.kernels.twin import twin
from llmlab.reference.attention.flash import FLASH


@twin(FLASH, backend="torch", looser=RECOMPUTED, gradient_factor=4.0)
def flash(q_BTKGH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *, causal: bool = True, block: int = 64) -> tuple[Tensor, Tensor]:
    if block < 1:
        raise ValueError(f"block={block} must be at least 1")
    return attend(q_BTKGH, k_BSKH, v_BSKH, causal=causal)
