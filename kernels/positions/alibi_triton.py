"""Linear biases on the GPU: one program per row of scores and block of keys, the bias formed from the key's index."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.positions.alibi import ALIBI, alibi_slopes

LARGEST_BLOCK = 4096


@twin(ALIBI, backend="triton")
def alibi(scores_BNTS: Tensor) -> Tensor:
    B, N, T, S = scores_BNTS.shape
    scores_BNTS = scores_BNTS.contiguous()
    out_BNTS = torch.empty_like(scores_BNTS)
    if scores_BNTS.numel():
        block, warps = row_block(S, LARGEST_BLOCK)
        grid = (B * N * T, triton.cdiv(S, block))
        _keys[grid](scores_BNTS, _slopes(N, scores_BNTS.device), out_BNTS, N, T, S, BLOCK=block, num_warps=warps)
    return out_BNTS


@lru_cache(maxsize=64)
def _slopes(num_heads: int, device: torch.device) -> Tensor:
    return torch.from_numpy(alibi_slopes(num_heads)).to(device, torch.float32)


@triton.jit
def _keys(scores_ptr, slopes_ptr, out_ptr, N, T, S, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    slope = tl.load(slopes_ptr + (m // T) % N)
    own = S - T + m % T
    s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = s < S
    scores = tl.load(scores_ptr + m * S + s, mask=inside, other=0.0).to(tl.float32)
    biased = scores + slope * (s - own).to(tl.float32)
    tl.store(out_ptr + m * S + s, biased.to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"scores_ptr": "*bf16", "slopes_ptr": "*fp32", "out_ptr": "*bf16", "N": "i32", "T": "i32", "S": "i32"}
AOT = [Ahead(_keys, _TYPES, {"BLOCK": 2048}, divisible=("S",), num_warps=row_block(2048)[1])]
