"""Paged attention on the GPU: flash's tiles, each tile of keys found through the block table; decode splits the keys."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.attention._tiles_triton import enough_splits, forward, forward_ahead
from llmlab.kernels.attention.varlen_triton import longest
from llmlab.kernels.twin import twin
from llmlab.reference.attention.paged import PAGED


@twin(PAGED, backend="triton")
def paged(
    q_UKGH: Tensor,
    k_pages_PCKH: Tensor,
    v_pages_PCKH: Tensor,
    table_BM: Tensor,
    query_starts_Z: Tensor,
    context_B: Tensor,
) -> Tensor:
    C, K = k_pages_PCKH.shape[1:3]
    new = longest(query_starts_Z)
    splits = enough_splits(len(context_B) * K, table_BM.shape[1] * C, q_UKGH.device) if new == 1 else 1
    k, v = k_pages_PCKH.flatten(0, 1), v_pages_PCKH.flatten(0, 1)
    out_UKGH, _ = forward(q_UKGH, k, v, query_starts_Z, context_B, new, causal=True, table_BM=table_BM, page=C, splits=splits)
    return out_UKGH


AOT = [
    forward_ahead("bf16", 128, rows=4, page=16, splits=8),
    forward_ahead("bf16", 128, page=16),
]
