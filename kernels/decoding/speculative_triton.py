"""Verification of guesses on the GPU: one program per sequence; guesses are tested one by one, then one row is drawn from."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.speculative import SPECULATIVE

LARGEST_CHUNK = 4096


@twin(SPECULATIVE, backend="triton")
def speculative(draft_BK: Tensor, q_BKV: Tensor, p_BJV: Tensor, uniform_BJ: Tensor) -> tuple[Tensor, Tensor]:
    B, K = draft_BK.shape
    V = p_BJV.shape[-1]
    token_BJ = torch.full((B, K + 1), -1, dtype=torch.int64, device=p_BJV.device)
    accepted_B = torch.zeros(B, dtype=torch.int64, device=p_BJV.device)
    if B:
        block, warps = row_block(V, LARGEST_CHUNK)
        inputs = (x.contiguous() for x in (draft_BK, q_BKV, p_BJV, uniform_BJ.float()))
        _verify[(B,)](*inputs, token_BJ, accepted_B, K, V, BLOCK=block, num_warps=warps)
    return token_BJ, accepted_B


@triton.jit
def _verify(draft_ptr, q_ptr, p_ptr, uniform_ptr, token_ptr, accepted_ptr, K, V, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    accepted = 0
    going = 1
    for k in range(0, K):
        x = tl.load(draft_ptr + b * K + k)
        q = tl.load(q_ptr + (b * K + k) * V + x).to(tl.float32)
        p = tl.load(p_ptr + (b * (K + 1) + k) * V + x).to(tl.float32)
        uniform = tl.load(uniform_ptr + b * (K + 1) + k)
        going = tl.where(uniform * q < p, going, 0)
        tl.store(token_ptr + b * (K + 1) + k, x, mask=going == 1)
        accepted += going
    p_row = p_ptr + (b * (K + 1) + accepted) * V
    q_row = q_ptr + (b * K + tl.minimum(accepted, K - 1)) * V
    uniform = tl.load(uniform_ptr + b * (K + 1) + K)
    refused = accepted < K
    share = tl.where(refused, 1.0, 0.0)
    total = _mass(p_row, q_row, share, V, BLOCK)
    share = tl.where(total > 0.0, share, 0.0)  # nothing left to make up for: draw from the target itself
    total = _mass(p_row, q_row, share, V, BLOCK)
    token = _draw(p_row, q_row, share, uniform * total, total, V, BLOCK)
    tl.store(token_ptr + b * (K + 1) + accepted, token)
    tl.store(accepted_ptr + b, accepted)


@triton.jit
def _left(p_row, q_row, share, first, V, BLOCK: tl.constexpr):
    """max(0, p - share * q) of one chunk."""
    v = first + tl.arange(0, BLOCK)
    p = tl.load(p_row + v, mask=v < V, other=0.0).to(tl.float32)
    q = tl.load(q_row + v, mask=v < V, other=0.0).to(tl.float32)
    left = p - share * q
    return tl.where(left < 0.0, 0.0, left)


@triton.jit
def _mass(p_row, q_row, share, V, BLOCK: tl.constexpr):
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        sums += _left(p_row, q_row, share, first, V, BLOCK)
    return tl.sum(sums, 0)


@triton.jit
def _draw(p_row, q_row, share, wanted, total, V, BLOCK: tl.constexpr):
    """The first token whose cumulative mass exceeds `wanted`; -1 without a distribution."""
    v = tl.arange(0, BLOCK)
    reached = 0.0
    passed = 0
    last = -1
    for first in range(0, V, BLOCK):
        left = _left(p_row, q_row, share, first, V, BLOCK)
        cumulative = reached + tl.cumsum(left, 0)
        passed += tl.sum(((first + v < V) & (cumulative <= wanted)).to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(left > 0.0, first + v, -1), 0))
        reached += tl.sum(left, 0)
    return tl.where(total > 0.0, tl.minimum(passed, last), -1)


_TYPES = {
    "draft_ptr": "*i64",
    "q_ptr": "*fp32",
    "p_ptr": "*fp32",
    "uniform_ptr": "*fp32",
    "token_ptr": "*i64",
    "accepted_ptr": "*i64",
    "K": "i32",
    "V": "i32",
}
AOT = [Ahead(_verify, _TYPES, {"BLOCK": LARGEST_CHUNK}, divisible=("V",), num_warps=row_block(LARGEST_CHUNK)[1])]
