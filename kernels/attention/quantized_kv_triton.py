"""Attention to a quantized cache on the GPU: one program per sequence, key head and part of the groups; codes become numbers in
registers, a group of keys at a time; a second kernel merges the parts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.attention._tiles_triton import IN_ONE_TILE, LOG2_E, _merge, enough_splits, head_width, merge_ahead
from llmlab.kernels.twin import twin
from llmlab.reference.attention.quantized_kv import QUANTIZED_KV, require_shapes


@twin(QUANTIZED_KV, backend="triton")
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
    B, K, G, H = q_BKGH.shape
    out = torch.empty_like(q_BKGH, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    given = (k_code_BSKPW, k_scale_BJKH, k_zero_BJKH, v_code_BSKPW, v_scale_BSKP, v_zero_BSKP, k_recent_BRKH, v_recent_BRKH)
    S, P, W = k_code_BSKPW.shape[1], k_code_BSKPW.shape[3], k_code_BSKPW.shape[4]
    J, R = k_scale_BJKH.shape[1], k_recent_BRKH.shape[1]
    splits = enough_splits(B * K, S + R, q_BKGH.device)
    part_out = out.new_empty((splits, B, K, G, H), dtype=torch.float32)
    part_lse, lse = (out.new_empty(shape, dtype=torch.float32) for shape in ((splits, B, K, G), (B, K, G)))
    C = S // max(J, 1)
    _parts[(splits, K, B)](
        q_BKGH.contiguous(), *(x.contiguous() for x in given), part_out, part_lse, H**-0.5 * LOG2_E, J, R,
        K=K, G=G, H=H, P=P, W=W, CODES=codes, C=C, HEAD=head_width(H), ROWS=max(triton.next_power_of_2(G), IN_ONE_TILE),
        KEYS=max(triton.next_power_of_2(C), IN_ONE_TILE), SPLITS=splits, num_warps=4, num_stages=2,
    )  # fmt: skip
    _merge[(B * K * G,)](
        part_out, part_lse, out, lse, B * K * G, H=H, HEAD=head_width(H), SPLITS=splits,
        PARTS=triton.next_power_of_2(splits), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _absorb(acc, total, peak, scores, v):
    """One tile of scores in base 2 and its values, into the running softmax."""
    new_peak = tl.maximum(peak, tl.max(tl.where(scores == scores, scores, -float("inf")), 1))
    shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
    weights = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(peak - shift)
    acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return acc, total * shrink + tl.sum(weights, 1), new_peak


@triton.jit
def _parts(
    q_ptr, k_code_ptr, k_scale_ptr, k_zero_ptr, v_code_ptr, v_scale_ptr, v_zero_ptr, k_recent_ptr, v_recent_ptr, out_ptr,
    lse_ptr, scale, J, R,
    K: tl.constexpr, G: tl.constexpr, H: tl.constexpr, P: tl.constexpr, W: tl.constexpr, CODES: tl.constexpr,
    C: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    bits: tl.constexpr = 8 // CODES
    g = tl.arange(0, ROWS)
    h = tl.arange(0, HEAD)
    c = tl.arange(0, KEYS)
    to_rows = ((b * K + head) * G + g)[:, None] * H + h[None, :]
    mine = (g < G)[:, None] & (h < H)[None, :]
    q = tl.load(q_ptr + to_rows, mask=mine, other=0.0)
    group = h // (W * CODES)  # of values
    place = group * W + h % W  # the byte of channel h
    by = (h // W % CODES * bits).to(tl.int32)
    acc = tl.zeros((ROWS, HEAD), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    run = tl.cdiv(J, SPLITS)
    for j in range(split * run, tl.minimum((split + 1) * run, J)):
        token = b * J * C + j * C + c
        here = (c < C)[:, None] & (h < H)[None, :]
        to_codes = ((token * K + head) * (P * W))[:, None] + place[None, :]
        to_group = ((b * J + j) * K + head) * H + h
        k = (tl.load(k_code_ptr + to_codes, mask=here, other=0).to(tl.int32) >> by[None, :]) & ((1 << bits) - 1)
        k_scale = tl.load(k_scale_ptr + to_group, mask=h < H, other=0.0).to(tl.float32)
        k_zero = tl.load(k_zero_ptr + to_group, mask=h < H, other=0.0).to(tl.float32)
        keys = tl.where(here, k.to(tl.float32) * k_scale[None, :] + k_zero[None, :], 0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((c < C)[None, :], scores, -float("inf"))
        v = (tl.load(v_code_ptr + to_codes, mask=here, other=0).to(tl.int32) >> by[None, :]) & ((1 << bits) - 1)
        to_scales = ((token * K + head) * P)[:, None] + group[None, :]
        v_scale = tl.load(v_scale_ptr + to_scales, mask=here, other=0.0).to(tl.float32)
        v_zero = tl.load(v_zero_ptr + to_scales, mask=here, other=0.0).to(tl.float32)
        acc, total, peak = _absorb(acc, total, peak, scores, (v.to(tl.float32) * v_scale + v_zero).to(q.dtype))
    recent = tl.where(split == SPLITS - 1, R, 0)  # plain tokens belong to the last part
    for start in range(0, recent, KEYS):
        r = start + c
        here = (r < R)[:, None] & (h < H)[None, :]
        to_recent = (((b * R + r) * K + head) * H)[:, None] + h[None, :]
        keys = tl.load(k_recent_ptr + to_recent, mask=here, other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((r < R)[None, :], scores, -float("inf"))
        acc, total, peak = _absorb(acc, total, peak, scores, tl.load(v_recent_ptr + to_recent, mask=here, other=0.0))
    divisor = tl.where(total == 0.0, 1.0, total)
    target = split.to(tl.int64) * (tl.num_programs(2) * K * G * H) + to_rows
    tl.store(out_ptr + target, acc / divisor[:, None], mask=mine)
    to_lse = split.to(tl.int64) * (tl.num_programs(2) * K * G) + (b * K + head) * G + g
    tl.store(lse_ptr + to_lse, (peak + tl.log2(divisor)) * 0.6931471805599453, mask=g < G)


def _ahead(dtype: str, codes: int) -> Ahead:
    floats = ("q_ptr", "k_scale_ptr", "k_zero_ptr", "v_scale_ptr", "v_zero_ptr", "k_recent_ptr", "v_recent_ptr")
    types = dict.fromkeys(floats, f"*{dtype}") | dict.fromkeys(("k_code_ptr", "v_code_ptr"), "*u8")
    types |= {"out_ptr": "*fp32", "lse_ptr": "*fp32", "scale": "fp32", "J": "i32", "R": "i32"}
    sizes = {"K": 8, "G": 4, "H": 128, "P": 4, "W": 32 // codes, "CODES": codes, "C": 32}
    return Ahead(_parts, types, sizes | {"HEAD": 128, "ROWS": 16, "KEYS": 32, "SPLITS": 8}, num_stages=2)


AOT = [_ahead("bf16", 1), _ahead("bf16", 2), merge_ahead("bf16", 128, 8)]
