"""Multi-head latent attention on the GPU: decoding reads each latent once for its scores and its values.

The absorbed kernel holds queries of 64 heads (rows) against tiles of latents, which serve as keys and, transposed, as
values; the keys are split over programs as in flash decoding. Prefill and the backward expand and run flash's tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.attention._tiles_triton import (
    IN_ONE_TILE,
    INTERPRETED,
    LOG2_E,
    _dot,
    _largest,
    _merge,
    enough_splits,
    head_width,
    merge_ahead,
)
from llmlab.kernels.attention.flash_triton import attend, attend_backward
from llmlab.kernels.attention.mla_torch import absorbs, expand
from llmlab.kernels.twin import twin
from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.mla import MLA

ROWS, KEYS, WARPS = (IN_ONE_TILE, IN_ONE_TILE, 4) if INTERPRETED else (64, 32, 8)
ROUNDED = "keys, values and absorbed queries are rounded to the inputs' type on the way"


@twin(MLA, backend="triton", looser=ROUNDED, tolerance_factor=4.0)
def mla(
    q_BTNH: Tensor,
    q_rope_BTNR: Tensor,
    latent_BSL: Tensor,
    k_rope_BSR: Tensor,
    up_k_NHL: Tensor,
    up_v_NVL: Tensor,
    *,
    causal: bool = True,
) -> Tensor:
    arrays = (q_BTNH, q_rope_BTNR, latent_BSL, k_rope_BSR, up_k_NHL, up_v_NVL)
    if causal:
        require_keys(q_BTNH.shape[1], latent_BSL.shape[1])
    if not absorbs(*arrays):
        queries, keys, values, V = expand(*arrays)
        return attend(queries[..., None, :], keys, values, causal=causal)[0][..., 0, :V]
    q_latent_BTNL = torch.einsum("btnh,nhl->btnl", q_BTNH, up_k_NHL)
    scale = (q_BTNH.shape[3] + q_rope_BTNR.shape[3]) ** -0.5
    mixed_BTNL = attend_latents(q_latent_BTNL, q_rope_BTNR, latent_BSL, k_rope_BSR, scale, causal=causal)
    return torch.einsum("btnl,nvl->btnv", mixed_BTNL, up_v_NVL)


@twin(MLA, backend="triton", of="backward", looser=ROUNDED, tolerance_factor=4.0)
def mla_backward(
    dout_BTNV: Tensor,
    q_BTNH: Tensor,
    q_rope_BTNR: Tensor,
    latent_BSL: Tensor,
    k_rope_BSR: Tensor,
    up_k_NHL: Tensor,
    up_v_NVL: Tensor,
    *,
    causal: bool = True,
) -> tuple[Tensor, ...]:
    H, R = q_BTNH.shape[3], q_rope_BTNR.shape[3]
    queries, keys, values, V = expand(q_BTNH, q_rope_BTNR, latent_BSL, k_rope_BSR, up_k_NHL, up_v_NVL)
    W = queries.shape[3]
    dout = torch.nn.functional.pad(dout_BTNV, (0, W - V))
    dqueries, dkeys, dvalues = attend_backward(dout[..., None, :], None, queries[..., None, :], keys, values, causal=causal)
    dqueries = dqueries[..., 0, :] * (W / (H + R)) ** 0.5
    dk_BSNH, dv_BSNV = dkeys[..., :H], dvalues[..., :V]
    dlatent = torch.einsum("bsnh,nhl->bsl", dk_BSNH, up_k_NHL) + torch.einsum("bsnv,nvl->bsl", dv_BSNV, up_v_NVL)
    return (
        dqueries[..., :H],
        dqueries[..., H : H + R],
        dlatent,
        dkeys[..., H : H + R].float().sum(2).to(k_rope_BSR.dtype),
        torch.einsum("bsnh,bsl->nhl", dk_BSNH, latent_BSL),
        torch.einsum("bsnv,bsl->nvl", dv_BSNV, latent_BSL),
    )


def attend_latents(
    q_BTNL: Tensor, q_rope_BTNR: Tensor, latent_BSL: Tensor, k_rope_BSR: Tensor, scale: float, *, causal: bool
) -> Tensor:
    """Return mixed_BTNL: every head's weighted sum of latents."""
    B, T, N, L = q_BTNL.shape
    S, R = k_rope_BSR.shape[1:]
    out = torch.zeros_like(q_BTNL, memory_format=torch.contiguous_format)
    if out.numel() == 0 or S == 0:
        return out
    splits = enough_splits(B * triton.cdiv(T * N, ROWS), S, q_BTNL.device)
    lse = out.new_empty((B, T, N), dtype=torch.float32)
    part_out, part_lse = out, lse
    if splits > 1:
        part_out = out.new_empty((splits, *out.shape), dtype=torch.float32)
        part_lse = lse.new_empty((splits, *lse.shape))
    _latents[(triton.cdiv(T * N, ROWS), splits, B)](
        q_BTNL.contiguous(), q_rope_BTNR.contiguous(), latent_BSL.contiguous(), k_rope_BSR.contiguous(), part_out, part_lse,
        scale * LOG2_E, B, T, S, N=N, L=L, R=R, LATENT=head_width(L), ROTATED=head_width(R), CAUSAL=causal, SPLITS=splits,
        ROWS=ROWS, KEYS=KEYS, num_warps=WARPS, num_stages=2,
    )  # fmt: skip
    if splits > 1:
        _merge[(B * T * N,)](
            part_out, part_lse, out, lse, B * T * N, H=L, HEAD=head_width(L), SPLITS=splits,
            PARTS=triton.next_power_of_2(splits), num_warps=4,
        )  # fmt: skip
    return out


@triton.jit
def _latents(
    q_ptr, q_rope_ptr, latent_ptr, k_rope_ptr, out_ptr, lse_ptr, scale, B, T, S,
    N: tl.constexpr, L: tl.constexpr, R: tl.constexpr, LATENT: tl.constexpr, ROTATED: tl.constexpr, CAUSAL: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = row < T * N
    l, r = tl.arange(0, LATENT), tl.arange(0, ROTATED)
    at = b * T * N + row
    q = tl.load(q_ptr + at[:, None] * L + l[None, :], mask=present[:, None] & (l < L)[None, :], other=0.0)
    q_rope = tl.load(q_rope_ptr + at[:, None] * R + r[None, :], mask=present[:, None] & (r < R)[None, :], other=0.0)
    high = row * 0 + S
    if CAUSAL:
        high = tl.minimum(S - T + row // N + 1, S)
    run = tl.cdiv(tl.cdiv(S, KEYS), SPLITS) * KEYS
    begin = split * run
    end = tl.minimum(begin + run, S)
    acc = tl.zeros((ROWS, LATENT), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    for start in range(begin, end, KEYS):
        n = start + tl.arange(0, KEYS)
        key = b * S + n
        latent = tl.load(latent_ptr + key[:, None] * L + l[None, :], mask=(n < S)[:, None] & (l < L)[None, :], other=0.0)
        k_rope = tl.load(k_rope_ptr + key[:, None] * R + r[None, :], mask=(n < S)[:, None] & (r < R)[None, :], other=0.0)
        scores = (_dot(q, tl.trans(latent)) + _dot(q_rope, tl.trans(k_rope))) * scale
        scores = tl.where(n[None, :] < high[:, None], scores, -float("inf"))
        new_peak = tl.maximum(peak, _largest(scores, 1))
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(peak - shift)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + _dot(weights.to(latent.dtype), latent)
        peak = new_peak
    divisor = tl.where(total == 0.0, 1.0, total)
    target = split.to(tl.int64) * B * T * N + at
    out = acc / divisor[:, None]
    tl.store(
        out_ptr + target[:, None] * L + l[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=present[:, None] & (l < L)[None, :],
    )
    tl.store(lse_ptr + target, (peak + tl.log2(divisor)) * 0.6931471805599453, mask=present)


AOT = [
    Ahead(
        _latents,
        {
            **dict.fromkeys(("q_ptr", "q_rope_ptr", "latent_ptr", "k_rope_ptr"), "*bf16"),
            **dict.fromkeys(("out_ptr", "lse_ptr"), "*fp32"),
            "scale": "fp32",
            **dict.fromkeys(("B", "T", "S"), "i32"),
        },
        {
            "N": 128, "L": 512, "R": 64, "LATENT": 512, "ROTATED": 64, "CAUSAL": True, "SPLITS": 8, "ROWS": 64, "KEYS": 32,
        },
        num_warps=8,
        num_stages=2,
        dot=True,
    ),
    merge_ahead("bf16", 512, 8),
]  # fmt: skip
