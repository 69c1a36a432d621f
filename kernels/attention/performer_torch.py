"""Performer in PyTorch: matrix products only; the causal form carries its state from chunk to chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.performer import PERFORMER

CHUNK = 128
CANCELS = (
    "numerator and normaliser are rounded apart, and a weight's gradients through them nearly cancel where few keys are seen"
)


@twin(PERFORMER, backend="torch", looser=CANCELS, tolerance_factor=2.0, gradient_factor=8.0)
def performer(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, projection_MH: Tensor, *, causal: bool = False) -> Tensor:
    T, S = q_BTNH.shape[1], k_BSNH.shape[1]
    kind = torch.float64 if q_BTNH.dtype == torch.float64 else torch.float32
    q_BNTH, k_BNSH, v_BNSH = (x.to(kind).transpose(1, 2) for x in (q_BTNH, k_BSNH, v_BSNH))
    projection_HM = projection_MH.detach().to(kind).T
    values_BNSV = torch.nn.functional.pad(v_BNSH, (0, 1), value=1.0)  # the column of ones sums the weights
    queries_BNTM, keys_BNSM = _features(q_BNTH, projection_HM, (-1,)), _features(k_BNSH, projection_HM, (-2, -1))
    if causal:
        require_keys(T, S)
        out_BNTV = _causal(queries_BNTM, keys_BNSM, values_BNSV)
    else:
        out_BNTV = queries_BNTM @ (keys_BNSM.transpose(-1, -2) @ values_BNSV)
    out_BNTH = out_BNTV[..., :-1] / out_BNTV[..., -1:]
    return out_BNTH.transpose(1, 2).to(q_BTNH.dtype)


def _features(x_BNSH: Tensor, projection_HM: Tensor, axes: tuple[int, ...]) -> Tensor:
    scaled = x_BNSH * x_BNSH.shape[-1] ** -0.25
    dots = scaled @ projection_HM
    if dots.numel() == 0:
        return dots
    return torch.exp(dots - scaled.square().sum(-1, keepdim=True) / 2 - dots.detach().amax(axes, keepdim=True))


def _causal(queries_BNTM: Tensor, keys_BNSM: Tensor, values_BNSV: Tensor) -> Tensor:
    """Chunk by chunk: the state of all chunks before, and the triangle inside."""
    T, S = queries_BNTM.shape[2], keys_BNSM.shape[2]
    before = S - T
    state_BNMV = keys_BNSM[:, :, :before].transpose(-1, -2) @ values_BNSV[:, :, :before]
    chunks = []
    for start in range(0, T, CHUNK):
        queries = queries_BNTM[:, :, start : start + CHUNK]
        keys = keys_BNSM[:, :, before + start : before + start + CHUNK]
        values = values_BNSV[:, :, before + start : before + start + CHUNK]
        chunks.append(queries @ state_BNMV + (queries @ keys.transpose(-1, -2)).tril() @ values)
        state_BNMV = state_BNMV + keys.transpose(-1, -2) @ values
    return torch.cat(chunks, dim=2) if chunks else queries_BNTM @ state_BNMV
