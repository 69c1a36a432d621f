"""Linear attention on the GPU: states of all chunks in one pass, then every chunk by itself; feature map applied on loading."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._decayed_triton import walk, walk_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention.linear import LINEAR, require_one_length


@twin(LINEAR, backend="triton")
def linear(
    q_BTNM: Tensor, k_BTNM: Tensor, v_BTNH: Tensor, state_BNMH: Tensor, total_BNM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    require_one_length(q_BTNM, k_BTNM, v_BTNH)
    out, state, total = walk(q_BTNM, k_BTNM, v_BTNH[:, :, :, None], state_BNMH[:, :, None], total_BKM=total_BNM, feature=True)
    assert total is not None  # given
    return out[:, :, :, 0], state[:, :, 0], total


AOT = [*walk_ahead("bf16", 16, 1, 64, 64, kind="linear"), *walk_ahead("bf16", 8, 1, 128, 128, kind="linear")]
