"""Softmax on the GPU: one program per row; a short row stays in registers, a long one is read twice, online (1805.02867)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.layers.softmax import SOFTMAX

LARGEST_ROW = 8192  # elements one program keeps in registers
CHUNK = 4096


@twin(SOFTMAX, backend="triton")
def softmax(x_BTS: Tensor, *, axis: int = -1) -> Tensor:
    x_last = x_BTS.movedim(axis, -1).contiguous()
    out_last = torch.empty_like(x_last)
    S = x_last.shape[-1]
    if x_last.numel():
        rows = (x_last.numel() // S,)
        if S <= LARGEST_ROW:
            block, warps = row_block(S)
            _row[rows](x_last, out_last, S, BLOCK=block, num_warps=warps)
        else:
            _long_row[rows](x_last, out_last, S, BLOCK=CHUNK, num_warps=8)
    return out_last.movedim(-1, axis)


@triton.jit
def _row(x_ptr, out_ptr, S, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * S
    s = tl.arange(0, BLOCK)
    inside = s < S
    x = tl.load(x_ptr + start + s, mask=inside, other=-float("inf")).to(tl.float32)
    peak = tl.max(x, 0)
    nothing = peak == -float("inf")
    weights = tl.exp(x - tl.where(nothing, 0.0, peak))
    total = tl.where(nothing, 1.0, tl.sum(weights, 0))
    tl.store(out_ptr + start + s, (weights / total).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _long_row(x_ptr, out_ptr, S, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * S
    s = tl.arange(0, BLOCK)
    # One running maximum and total per lane; they meet once, after the loop.
    peaks = tl.full((BLOCK,), -float("inf"), tl.float32)
    totals = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, S, BLOCK):
        x = tl.load(x_ptr + start + first + s, mask=first + s < S, other=-float("inf")).to(tl.float32)
        higher = tl.where(x > peaks, x, peaks)
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        totals = totals * tl.exp(peaks - shift) + tl.exp(x - shift)
        peaks = higher
    peak = tl.max(peaks, 0)
    nothing = peak == -float("inf")
    shift = tl.where(nothing, 0.0, peak)
    total = tl.where(nothing, 1.0, tl.sum(totals * tl.exp(peaks - shift), 0))
    for first in range(0, S, BLOCK):
        inside = first + s < S
        x = tl.load(x_ptr + start + first + s, mask=inside, other=-float("inf")).to(tl.float32)
        tl.store(out_ptr + start + first + s, (tl.exp(x - shift) / total).to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"x_ptr": "*bf16", "out_ptr": "*bf16", "S": "i32"}
AOT = [
    Ahead(_row, _TYPES, {"BLOCK": 4096}, divisible=("S",), num_warps=row_block(4096)[1]),
    Ahead(_row, _TYPES, {"BLOCK": 8192}, num_warps=row_block(8192)[1]),
    Ahead(_long_row, _TYPES, {"BLOCK": CHUNK}, divisible=("S",), num_warps=8),
]
