"""Attention to a rolling cache by PyTorch's fused kernel: keys rotated to their cache positions, unfilled slots masked."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.positions.rope_torch import rope
from llmlab.kernels.twin import twin
from llmlab.reference.attention.streaming import STREAMING, cache_positions, require


@twin(STREAMING, backend="torch")
def streaming(
    q_BKGH: Tensor, k_BCKH: Tensor, v_BCKH: Tensor, seen_B: Tensor, *, sinks: int = 4, theta: float = 10000.0
) -> Tensor:
    B, C, _, H = k_BCKH.shape
    seen = seen_B.cpu().numpy()
    require(C, seen, sinks)
    if q_BKGH.numel() == 0:
        return torch.empty_like(q_BKGH)
    place_BC, filled_BC = (torch.from_numpy(x).to(k_BCKH.device) for x in cache_positions(seen, C, sinks))
    kind = q_BKGH.dtype
    wide = kind if kind == torch.float64 else torch.float32  # a rotation rounded to 8 bits would be one more error
    keys_BCKH = rope(k_BCKH.to(wide), place_BC, theta=theta)
    last_B1 = seen_B.clamp(max=C)[:, None] - 1
    queries_BKGH = rope(q_BKGH.to(wide).reshape(B, 1, -1, H), last_B1, theta=theta).reshape(q_BKGH.shape)
    out_BNTH = torch.nn.functional.scaled_dot_product_attention(
        queries_BKGH.flatten(1, 2)[:, :, None],
        keys_BCKH.transpose(1, 2),
        v_BCKH.to(wide).transpose(1, 2),
        attn_mask=filled_BC[:, None, None],
        enable_gqa=True,
    )
    return out_BNTH[:, :, 0].reshape(q_BKGH.shape).to(kind)
