"""Reformer's attention in PyTorch: all chunks of a round in one batched product, rounds merged by their log-sum-exps."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.attention.reformer import CHUNK, REFORMER, require_chunk

HIDDEN = -1e30  # far below any score, yet finite: a row of it has a softmax and a gradient
CANCELS = "the gradient of a row that sees one key cancels to zero in the formula and to rounding here"


@twin(REFORMER, backend="torch", looser=CANCELS, gradient_factor=8.0)
def reformer(qk_BTNH: Tensor, v_BTNH: Tensor, buckets_BNRT: Tensor, *, chunk: int = CHUNK, causal: bool = True) -> Tensor:
    require_chunk(chunk)
    if qk_BTNH.numel() == 0:
        return v_BTNH.clone()
    kind = torch.float64 if qk_BTNH.dtype == torch.float64 else torch.float32
    q_ZTH, v_ZTH = (x.to(kind).transpose(1, 2).flatten(0, 1) for x in (qk_BTNH, v_BTNH))
    k_ZTH = torch.nn.functional.normalize(q_ZTH, dim=-1, eps=torch.finfo(kind).tiny)
    buckets_ZRT = buckets_BNRT.flatten(0, 1)
    order_ZRT = buckets_ZRT.argsort(dim=-1, stable=True)
    place_ZRT = order_ZRT.argsort(dim=-1)
    rounds = [
        _round(q_ZTH, k_ZTH, v_ZTH, buckets_ZRT, order_ZRT, place_ZRT, r, chunk, causal) for r in range(buckets_ZRT.shape[1])
    ]
    out_RZTH, lse_RZT = (torch.stack(parts) for parts in zip(*rounds))
    share_RZT = lse_RZT.softmax(0)
    mixed_ZTH = (share_RZT[..., None] * out_RZTH).sum(0)
    alone_ZT1 = (lse_RZT < HIDDEN / 2).all(0)[..., None]
    out_ZTH = torch.where(alone_ZT1, v_ZTH, mixed_ZTH)
    return out_ZTH.unflatten(0, (qk_BTNH.shape[0], -1)).transpose(1, 2).to(qk_BTNH.dtype)


def _round(
    q_ZTH: Tensor, k_ZTH: Tensor, v_ZTH: Tensor, buckets_ZRT: Tensor, order_ZRT: Tensor, place_ZRT: Tensor, r: int, chunk: int,
    causal: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One round's (out_ZTH, lse_ZT) over the pairs that no earlier round has found."""
    Z, T, H = q_ZTH.shape
    chunks = -(-T // chunk)
    order_ZT = order_ZRT[:, r]
    filled_ZT = torch.nn.functional.pad(order_ZT, (0, chunks * chunk - T), value=-1).view(Z, chunks, chunk)  # -1: no token
    before = torch.nn.functional.pad(filled_ZT, (0, 0, 1, 0), value=-1)[:, :-1]
    key_ZCS, query_ZCT = torch.cat([before, filled_ZT], dim=-1), filled_ZT
    i, j = query_ZCT[..., :, None], key_ZCS[..., None, :]
    seen = (i >= 0) & (j >= 0) & ((j < i) if causal else (j != i))
    of_query, of_key = query_ZCT.clamp(min=0).flatten(1), key_ZCS.clamp(min=0).flatten(1)
    for other in range(r + 1):
        bucket_i, bucket_j, place_i, place_j = (
            table[:, other].gather(1, of).view(shape.shape)
            for table in (buckets_ZRT, place_ZRT)
            for of, shape in ((of_query, query_ZCT), (of_key, key_ZCS))
        )
        same = bucket_i[..., :, None] == bucket_j[..., None, :]
        if other == r:
            seen = seen & same
        else:
            apart = place_i[..., :, None] // chunk - place_j[..., None, :] // chunk
            seen = seen & ~(same & ((apart == 0) | (apart == 1)))

    def rows(x_ZTH: Tensor, of: Tensor) -> Tensor:
        return x_ZTH.gather(1, of[..., None].expand(-1, -1, H)).unflatten(1, (chunks, -1))

    scores = (rows(q_ZTH, of_query) @ rows(k_ZTH, of_key).transpose(-1, -2)).masked_fill(~seen, HIDDEN)
    lse = scores.logsumexp(-1)
    out = torch.exp(scores - lse[..., None]) @ rows(v_ZTH, of_key)
    place_ZT = place_ZRT[:, r]
    out_ZTH = out.flatten(1, 2).gather(1, place_ZT[..., None].expand(-1, -1, H))
    return out_ZTH, lse.flatten(1).gather(1, place_ZT)
