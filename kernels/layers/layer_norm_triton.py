"""Layer normalization on the GPU: one program per row, held in registers; the variance is taken from centred values."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.layers.layer_norm import LAYER_NORM


@twin(LAYER_NORM, backend="triton")
def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, *, eps: float = 1e-5) -> Tensor:
    x_BTD = x_BTD.contiguous()
    out_BTD = torch.empty_like(x_BTD)
    D = x_BTD.shape[-1]
    if x_BTD.numel():
        block, warps = row_block(D)
        arrays = x_BTD, weight_D.contiguous(), bias_D.contiguous(), out_BTD
        _row[(x_BTD.numel() // D,)](*arrays, eps, D, BLOCK=block, num_warps=warps)
    return out_BTD


@triton.jit
def _row(x_ptr, weight_ptr, bias_ptr, out_ptr, eps, D, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK)
    inside = d < D
    x = tl.load(x_ptr + start + d, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, 0) / D, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / D + eps)
    tl.store(out_ptr + start + d, (centred * scale * weight + bias).to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {**dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16"), "eps": "fp32", "D": "i32"}
AOT = [Ahead(_row, _TYPES, {"BLOCK": row_block(D)[0]}, divisible=("D",), num_warps=row_block(D)[1]) for D in (768, 12288)]
