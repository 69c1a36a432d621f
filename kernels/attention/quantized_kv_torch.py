"""Attention to a quantized cache by PyTorch: codes unpacked and scaled by tensor operations, then its fused attention."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.attention.quantized_kv import QUANTIZED_KV, require_shapes


@twin(QUANTIZED_KV, backend="torch")
def quantized_kv(
    q_BKGH: Tensor,
    k_code_BSKPW: Tensor,
    k_scale_BJKH: Tensor,
    k_zero_BJKH: Tensor,
    v_code_BSKPW: Tensor,
    v_scale_BSKP: Tensor,
    v_zero_BSKP: Tensor,
    k_recent_BRKH: Tensor,
    v_recent_BRKH: Tensor,
) -> Tensor:
    codes = require_shapes(tuple(q_BKGH.shape), tuple(k_code_BSKPW.shape), tuple(k_scale_BJKH.shape))
    if q_BKGH.numel() == 0:
        return torch.empty_like(q_BKGH)
    kind = q_BKGH.dtype
    wide = kind if kind == torch.float64 else torch.float32  # halves would round every key once more
    J, P = k_scale_BJKH.shape[1], v_scale_BSKP.shape[3]
    k_BJCKH = _channels(k_code_BSKPW, codes).to(wide).unflatten(1, (J, -1))
    k_BSKH = torch.addcmul(k_zero_BJKH[:, :, None].to(wide), k_BJCKH, k_scale_BJKH[:, :, None].to(wide)).flatten(1, 2)
    v_BSKPE = _channels(v_code_BSKPW, codes).to(wide).unflatten(3, (P, -1))
    v_BSKH = torch.addcmul(v_zero_BSKP[..., None].to(wide), v_BSKPE, v_scale_BSKP[..., None].to(wide)).flatten(3)
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(
        q_BKGH.to(wide).flatten(1, 2)[:, :, None],
        torch.cat([k_BSKH, k_recent_BRKH.to(wide)], 1).transpose(1, 2),
        torch.cat([v_BSKH, v_recent_BRKH.to(wide)], 1).transpose(1, 2),
        enable_gqa=True,
    )
    return out_BNTH.reshape(q_BKGH.shape).to(kind)


def _channels(code_BSKPW: Tensor, codes: int) -> Tensor:
    """One code per channel, code_BSKH."""
    bits = 8 // codes
    planes = [(code_BSKPW >> (bits * u)) & ((1 << bits) - 1) for u in range(codes)]
    return torch.stack(planes, -2).flatten(3)
