"""Linformer in PyTorch: two projections as matrix products, then the fused attention over R mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention._gathered_torch import CANCELS
from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.linformer import LINFORMER, require_length


@twin(LINFORMER, backend="torch", looser=CANCELS, gradient_factor=4.0)
def linformer(q_BTNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, project_k_RS: Tensor, project_v_RS: Tensor) -> Tensor:
    require_length(k_BSNH.shape[1], project_k_RS.shape[1], project_v_RS.shape[1])
    kind = q_BTNH.dtype if q_BTNH.is_cuda or q_BTNH.dtype == torch.float64 else torch.float32
    mixed = [
        torch.matmul(projection.to(kind), x.to(kind).flatten(2)).unflatten(2, x.shape[2:])
        for projection, x in ((project_k_RS, k_BSNH), (project_v_RS, v_BSNH))
    ]
    return gqa(q_BTNH.to(kind)[..., None, :], *mixed, causal=False)[..., 0, :].to(q_BTNH.dtype)
