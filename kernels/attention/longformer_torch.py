"""Longformer's attention in PyTorch: blocks of local queries over their few keys, per residue of the dilation."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._gathered_torch import CANCELS, attend_gathered
from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.longformer import LONGFORMER, WINDOW, require_pattern

BLOCK = 256  # local queries; keys outside the window that a block still computes are at most this many


@twin(LONGFORMER, backend="torch", looser=CANCELS, gradient_factor=4.0)
def longformer(
    q_BTNH: Tensor,
    k_BTNH: Tensor,
    v_BTNH: Tensor,
    global_q_BPNH: Tensor,
    global_k_BTNH: Tensor,
    global_v_BTNH: Tensor,
    *,
    window: int = WINDOW,
    dilation: int = 1,
) -> Tensor:
    T, P = q_BTNH.shape[1], global_q_BPNH.shape[1]
    require_pattern(T, P, window, dilation)
    out_BPNH = gqa(global_q_BPNH[..., None, :], global_k_BTNH, global_v_BTNH, causal=False)[..., 0, :]
    pieces = [_residue(q_BTNH, k_BTNH, v_BTNH, P, r, window // 2, dilation) for r in range(min(dilation, T - P))]
    if not pieces:
        return out_BPNH
    longest = pieces[0].shape[1]  # tokens of one residue lie dilation apart: interleave them again
    padded = [torch.nn.functional.pad(piece, (0, 0, 0, 0, 0, longest - piece.shape[1])) for piece in pieces]
    return torch.cat([out_BPNH, torch.stack(padded, dim=2).flatten(1, 2)[:, : T - P]], dim=1)


def _residue(q_BTNH: Tensor, k_BTNH: Tensor, v_BTNH: Tensor, P: int, r: int, half: int, dilation: int) -> Tensor:
    """Every dilation-th local token, for which the window is a plain one."""
    q, k, v = (x[:, P + r :: dilation] for x in (q_BTNH, k_BTNH, v_BTNH))
    blocks = []
    for start in range(0, q.shape[1], BLOCK):
        end = min(start + BLOCK, q.shape[1])
        first, last = max(start - half, 0), min(end + half, q.shape[1])
        distance_TS = torch.arange(start, end, device=q.device)[:, None] - torch.arange(first, last, device=q.device)
        seen_TS = torch.nn.functional.pad(distance_TS.abs() <= half, (P, 0), value=True)
        keys, values = (torch.cat([whole[:, :P], x[:, first:last]], dim=1) for whole, x in ((k_BTNH, k), (v_BTNH, v)))
        B, N = q.shape[0], q.shape[2]
        queries_ZT1H = q[:, start:end].transpose(1, 2).flatten(0, 1)[:, :, None]
        keys_ZSH, values_ZSH = (x.transpose(1, 2).flatten(0, 1) for x in (keys, values))
        out_ZT1H = attend_gathered(queries_ZT1H, keys_ZSH, values_ZSH, seen_TS.expand(B * N, -1, -1))
        blocks.append(out_ZT1H[:, :, 0].unflatten(0, (B, N)).transpose(1, 2))
    return torch.cat(blocks, dim=1)
