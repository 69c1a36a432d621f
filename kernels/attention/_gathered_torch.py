"""Queries over the keys they gather, in PyTorch: one fused call for all gathered sets of one size."""

from __future__ import annotations

import torch
from torch import Tensor

CANCELS = (
    "the fused backward subtracts sum(dout out), rounded apart from dout v', which it nearly equals where few keys are seen"
)


def attend_gathered(
    q_ZTGH: Tensor, k_ZSH: Tensor, v_ZSH: Tensor, seen_ZTS: Tensor | None, *, scale: float | None = None
) -> Tensor:
    """Attend T queries of G heads to S keys in each of Z gathered sets; a query that sees nothing gives zeros."""
    T, G, H = q_ZTGH.shape[1:]
    if q_ZTGH.numel() == 0 or k_ZSH.shape[1] == 0:
        return q_ZTGH.masked_fill(torch.ones((), dtype=torch.bool, device=q_ZTGH.device), 0)
    rows_Z1RH, k_Z1SH, v_Z1SH = q_ZTGH.flatten(1, 2)[:, None], k_ZSH[:, None], v_ZSH[:, None]
    seen_Z1RS = None if seen_ZTS is None else seen_ZTS.repeat_interleave(G, dim=-2)[:, None]
    if not torch.isfinite(q_ZTGH).all():  # fused kernels answer such rows each in their own way
        scores_Z1RS = (rows_Z1RH @ k_Z1SH.transpose(-1, -2)) * (H**-0.5 if scale is None else scale)
        if seen_Z1RS is not None:
            scores_Z1RS = scores_Z1RS.masked_fill(~seen_Z1RS, -torch.inf)
        blind_Z1R1 = (scores_Z1RS == -torch.inf).all(-1, keepdim=True)
        return (scores_Z1RS.softmax(-1).masked_fill(blind_Z1R1, 0) @ v_Z1SH)[:, 0].unflatten(1, (T, G))
    if seen_Z1RS is None:
        out_Z1RH = torch.nn.functional.scaled_dot_product_attention(rows_Z1RH, k_Z1SH, v_Z1SH, scale=scale)
    else:
        blind_Z1R1 = ~seen_Z1RS.any(-1, keepdim=True)
        seen_Z1RS = seen_Z1RS | blind_Z1R1  # a row of nothing but -inf has no softmax, nor a gradient
        out_Z1RH = torch.nn.functional.scaled_dot_product_attention(
            rows_Z1RH, k_Z1SH, v_Z1SH, attn_mask=seen_Z1RS, scale=scale
        ).masked_fill(blind_Z1R1, 0)
    return out_Z1RH[:, 0].unflatten(1, (T, G))
