"""Embedding on the GPU: one program per position copies its row."""

import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.layers.embedding import EMBEDDING


@twin(EMBEDDING, backend="triton")
def embedding(ids_BT: Tensor, weight_VD: Tensor, *, padding_index: int | None = None) -> Tensor:
    ids_BT, weight_VD = ids_BT.contiguous(), weight_VD.contiguous()
    D = weight_VD.shape[1]
    out_BTD = weight_VD.new_empty((*ids_BT.shape, D))
    if out_BTD.numel():
        block, warps = row_block(D)
        _row[(ids_BT.numel(),)](ids_BT, weight_VD, out_BTD, D, BLOCK=block, num_warps=warps)
    return out_BTD


@triton.jit
def _row(ids_ptr, weight_ptr, out_ptr, D, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    row = tl.load(ids_ptr + m).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    tl.store(out_ptr + m * D + d, tl.load(weight_ptr + row * D + d, mask=inside), mask=inside)


_TYPES = {"ids_ptr": "*i64", "weight_ptr": "*bf16", "out_ptr": "*bf16", "D": "i32"}
AOT = [Ahead(_row, _TYPES, {"BLOCK": 4096}, divisible=("D",), num_warps=row_block(4096)[1])]
