"""Multi-head attention by PyTorch's scaled dot-product attention, padding mask and bias joined into one additive mask."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.mha import MHA


@twin(MHA, backend="torch")
def mha(
    q_BTNH: Tensor,
    k_BSNH: Tensor,
    v_BSNH: Tensor,
    keep_BS: Tensor | None = None,
    bias_NTS: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    T, S = q_BTNH.shape[1], k_BSNH.shape[1]
    if causal:
        require_keys(T, S)
    mask_BNTS = None if bias_NTS is None else bias_NTS[None]
    if keep_BS is not None:
        if mask_BNTS is None:
            mask_BNTS = q_BTNH.new_zeros(1, 1, 1, S)
        mask_BNTS = mask_BNTS.masked_fill(~keep_BS[:, None, None, :], -torch.inf)
    if causal and mask_BNTS is None and T != S:
        mask_BNTS = q_BTNH.new_zeros(1, 1, T, S)
    if causal and mask_BNTS is not None:
        hidden_TS = torch.ones(T, S, dtype=torch.bool, device=q_BTNH.device).triu(S - T + 1)
        mask_BNTS = mask_BNTS.masked_fill(hidden_TS, -torch.inf)
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(
        q_BTNH.transpose(1, 2),
        k_BSNH.transpose(1, 2),
        v_BSNH.transpose(1, 2),
        attn_mask=mask_BNTS,
        is_causal=causal and mask_BNTS is None,
    )
    out_BTNH = out_BNTH.transpose(1, 2)
    if keep_BS is None:
        return out_BTNH
    # a query without keys gives zeros whatever it holds; adding -inf to a NaN score would not
    seen_BT = (keep_BS.cumsum(1) > 0)[:, S - T :] if causal else keep_BS.any(1, keepdim=True)
    return out_BTNH.masked_fill(~seen_BT[:, :, None, None], 0.0)
