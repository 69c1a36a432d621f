"""Gated linear units on the GPU: one program per block of elements, activation and product in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.layers._activation_triton import BLOCK, KINDS, WARPS, code_of, value
from llmlab.kernels.twin import twin
from llmlab.reference.layers.glu import GLU


@twin(GLU, backend="triton")
def glu(gate_BTF: Tensor, up_BTF: Tensor, *, kind: str = "silu") -> Tensor:
    gate_BTF, up_BTF, code = gate_BTF.contiguous(), up_BTF.contiguous(), code_of(kind)
    out_BTF = torch.empty_like(gate_BTF)
    if gate_BTF.numel():
        grid = (triton.cdiv(gate_BTF.numel(), BLOCK),)
        _block[grid](gate_BTF, up_BTF, out_BTF, gate_BTF.numel(), CODE=code, BLOCK=BLOCK, num_warps=WARPS)
    return out_BTF


@triton.jit
def _block(gate_ptr, up_ptr, out_ptr, count, CODE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    gate = tl.load(gate_ptr + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + i, (value(gate, CODE) * up).to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"gate_ptr": "*bf16", "up_ptr": "*bf16", "out_ptr": "*bf16", "count": "i32"}
AOT = [
    Ahead(_block, _TYPES, {"CODE": code, "BLOCK": BLOCK}, divisible=("count",), num_warps=WARPS) for code in range(len(KINDS))
]
