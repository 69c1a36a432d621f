"""RMS normalization on the GPU: one program per row, the row held in registers between its two uses."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.layers.rms_norm import RMS_NORM


@twin(RMS_NORM, backend="triton")
def rms_norm(x_BTD: Tensor, weight_D: Tensor, *, eps: float = 1e-6) -> Tensor:
    x_BTD = x_BTD.contiguous()
    out_BTD = torch.empty_like(x_BTD)
    D = x_BTD.shape[-1]
    if x_BTD.numel():
        block, warps = row_block(D)
        _row[(x_BTD.numel() // D,)](x_BTD, weight_D.contiguous(), out_BTD, eps, D, BLOCK=block, num_warps=warps)
    return out_BTD


@triton.jit
def _row(x_ptr, weight_ptr, out_ptr, eps, D, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * D  # int64: rows * D passes 2**31 on long inputs
    d = tl.arange(0, BLOCK)
    inside = d < D
    x = tl.load(x_ptr + start + d, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(out_ptr + start + d, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "out_ptr": "*bf16", "eps": "fp32", "D": "i32"}
AOT = [
    Ahead(_row, _TYPES, {"BLOCK": row_block(D)[0]}, divisible=("D",), num_warps=row_block(D)[1]) for D in (4096, 8192, 16384)
]
