"""Packed attention: one fused call for sequences of equal length, else one per sequence; no padding is computed."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from llmlab.kernels.attention._fused_torch import RECOMPUTED, constant_like
from llmlab.kernels.attention.gqa_torch import gqa
from llmlab.kernels.twin import twin
from llmlab.reference.attention.varlen import VARLEN


@twin(VARLEN, backend="torch", looser=RECOMPUTED, gradient_factor=4.0)
def varlen(
    q_UKGH: Tensor,
    k_WKH: Tensor,
    v_WKH: Tensor,
    query_starts_Z: Tensor,
    key_starts_Z: Tensor,
    *,
    causal: bool = True,
) -> Tensor:
    queries, keys = query_starts_Z.tolist(), key_starts_Z.tolist()
    lengths = {(b - a, d - c) for (a, b), (c, d) in zip(pairwise(queries), pairwise(keys), strict=True)}
    if len(lengths) == 1 and queries[-1] == len(q_UKGH) and keys[-1] == len(k_WKH):
        T, S = lengths.pop()
        if 0 < T <= S:
            q_BTKGH, k_BSKH, v_BSKH = q_UKGH.unflatten(0, (-1, T)), k_WKH.unflatten(0, (-1, S)), v_WKH.unflatten(0, (-1, S))
            return gqa(q_BTKGH, k_BSKH, v_BSKH, causal=causal).flatten(0, 1)
    zeros_UKGH = constant_like(q_UKGH, 0.0)  # rows that see nothing
    rows = []
    for (start, end), (first, last) in zip(pairwise(queries), pairwise(keys)):
        unseen = end - start if first == last else max(end - start - (last - first), 0) if causal else 0
        rows.append(zeros_UKGH[start : start + unseen])
        if start + unseen < end:
            alone = (q_UKGH[start + unseen : end], k_WKH[first:last], v_WKH[first:last])
            rows.append(gqa(*(x[None] for x in alone), causal=causal)[0])
    rows.append(zeros_UKGH[queries[-1] :])
    return torch.cat(rows)
