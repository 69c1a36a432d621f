"""Paged attention, request by request: its pages gathered into consecutive keys, then PyTorch's fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.paged import PAGED


@twin(PAGED, backend="torch")
def paged(
    q_UKGH: Tensor,
    k_pages_PCKH: Tensor,
    v_pages_PCKH: Tensor,
    table_BM: Tensor,
    query_starts_Z: Tensor,
    context_B: Tensor,
) -> Tensor:
    C = k_pages_PCKH.shape[1]
    out_UKGH = torch.zeros_like(q_UKGH)
    starts = query_starts_Z.tolist()
    for b, context in enumerate(context_B.tolist()):
        end = starts[b + 1]
        start = max(starts[b], end - context)  # a query before position 0 sees nothing
        if start >= end:
            continue
        pages = table_BM[b, : -(-context // C)]
        k_1SKH, v_1SKH = (pool.index_select(0, pages).flatten(0, 1)[None, :context] for pool in (k_pages_PCKH, v_pages_PCKH))
        out_UKGH[start:end] = gqa(q_UKGH[None, start:end], k_1SKH, v_1SKH)[0]
    return out_UKGH
