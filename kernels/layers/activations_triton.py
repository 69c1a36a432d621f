"""Pointwise activations on the GPU: one program per block of elements, whatever the axes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.layers._activation_triton import BLOCK, KINDS, WARPS, code_of, value
from llmlab.kernels.twin import twin
from llmlab.reference.layers.activations import ACTIVATIONS


@twin(ACTIVATIONS, backend="triton")
def activations(x_BTF: Tensor, *, kind: str = "gelu") -> Tensor:
    x_BTF, code = x_BTF.contiguous(), code_of(kind)
    out_BTF = torch.empty_like(x_BTF)
    if x_BTF.numel():
        grid = (triton.cdiv(x_BTF.numel(), BLOCK),)
        _block[grid](x_BTF, out_BTF, x_BTF.numel(), CODE=code, BLOCK=BLOCK, num_warps=WARPS)
    return out_BTF


@triton.jit
def _block(x_ptr, out_ptr, count, CODE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    x = tl.load(x_ptr + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + i, value(x, CODE).to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"x_ptr": "*bf16", "out_ptr": "*bf16", "count": "i32"}
AOT = [
    Ahead(_block, _TYPES, {"CODE": code, "BLOCK": BLOCK}, divisible=("count",), num_warps=WARPS) for code in range(len(KINDS))
]
