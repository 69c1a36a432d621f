"""Linear attention by batched matrix products over chunks; the weights are one more column of values."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._decayed_torch import walk, working
from llmlab.kernels.twin import twin
from llmlab.reference.attention.linear import LINEAR, require_one_length


@twin(LINEAR, backend="torch")
def linear(
    q_BTNM: Tensor, k_BTNM: Tensor, v_BTNH: Tensor, state_BNMH: Tensor, total_BNM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    require_one_length(q_BTNM, k_BTNM, v_BTNH)
    kind = v_BTNH.dtype
    fq_BTNM, fk_BTNM = (torch.nn.functional.elu(working(x)) + 1 for x in (q_BTNM, k_BTNM))
    v, state, total = working(v_BTNH), working(state_BNMH), working(total_BNM)
    counted_BTN1H = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)[:, :, :, None]
    sums_BTN1H, after_BN1MH = walk(fq_BTNM, fk_BTNM, counted_BTN1H, None, torch.cat([state, total[..., None]], -1)[:, :, None])
    sums_BTNH, after_BNMH = sums_BTN1H[:, :, :, 0], after_BN1MH[:, :, 0]
    out_BTNH = sums_BTNH[..., :-1] / sums_BTNH[..., -1:]
    return out_BTNH.to(kind), after_BNMH[..., :-1].to(kind), after_BNMH[..., -1].to(kind)
