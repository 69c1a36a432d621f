"""Residual addition and RMS normalization on the GPU: one program per row, the sum stays in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.layers.add_rms_norm import ADD_RMS_NORM


@twin(ADD_RMS_NORM, backend="triton")
def add_rms_norm(x_BTD: Tensor, residual_BTD: Tensor, weight_D: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    x_BTD, residual_BTD = x_BTD.contiguous(), residual_BTD.contiguous()
    normed_BTD, stream_BTD = torch.empty_like(x_BTD), torch.empty_like(x_BTD)
    D = x_BTD.shape[-1]
    if x_BTD.numel():
        block, warps = row_block(D)
        arrays = x_BTD, residual_BTD, weight_D.contiguous(), normed_BTD, stream_BTD
        _row[(x_BTD.numel() // D,)](*arrays, eps, D, BLOCK=block, num_warps=warps)
    return normed_BTD, stream_BTD


@triton.jit
def _row(x_ptr, residual_ptr, weight_ptr, normed_ptr, stream_ptr, eps, D, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    inside = d < D
    x = tl.load(x_ptr + start + d, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + start + d, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    rounded = (residual + x).to(stream_ptr.dtype.element_ty)
    tl.store(stream_ptr + start + d, rounded, mask=inside)
    stream = rounded.to(tl.float32)  # what a separate normalization would read
    scale = 1.0 / tl.sqrt(tl.sum(stream * stream, 0) / D + eps)
    tl.store(normed_ptr + start + d, (stream * scale * weight).to(normed_ptr.dtype.element_ty), mask=inside)


_TYPES = {
    **dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "normed_ptr", "stream_ptr"), "*bf16"),
    "eps": "fp32",
    "D": "i32",
}
AOT = [Ahead(_row, _TYPES, {"BLOCK": row_block(D)[0]}, divisible=("D",), num_warps=row_block(D)[1]) for D in (4096, 8192)]
