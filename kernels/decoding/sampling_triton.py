"""Sampling on the GPU: one program per row, the row in cache; truncations find their threshold bit by bit, without sorting."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.triton_launch import row_block
from llmlab.kernels.twin import twin
from llmlab.reference.decoding.sampling import SAMPLING, require_options

LARGEST_CHUNK = 4096


@twin(SAMPLING, backend="triton")
def sampling(
    logits_BV: Tensor,
    uniform_B: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon: float = 0.0,
    eta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    require_options(temperature, top_k, top_p, min_p, typical_p, epsilon, eta)
    x_BV = (logits_BV.float() / temperature).contiguous()  # also the scratch that truncated tokens are struck out in
    p_BV = torch.empty_like(x_BV)
    B, V = x_BV.shape
    token_B = torch.empty(B, dtype=torch.int64, device=x_BV.device)
    if B:
        block, warps = row_block(V, LARGEST_CHUNK)
        numbers = min(top_k, V), top_p, min_p, typical_p, epsilon, eta
        used = {
            "TOP_K": 0 < top_k < V,
            "TOP_P": top_p < 1,
            "MIN_P": min_p > 0,
            "TYPICAL": typical_p < 1,
            "EPSILON": epsilon > 0,
            "ETA": eta > 0,
        }
        _row[(B,)](x_BV, uniform_B.float().contiguous(), p_BV, token_B, *numbers, V, **used, BLOCK=block, num_warps=warps)
    return p_BV.to(logits_BV.dtype), token_B


@triton.jit
def _row(
    x_ptr,
    uniform_ptr,
    p_ptr,
    token_ptr,
    top_k,
    top_p,
    min_p,
    typical_p,
    epsilon,
    eta,
    V,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    TYPICAL: tl.constexpr,
    EPSILON: tl.constexpr,
    ETA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    x_ptr += b * V
    p_ptr += b * V
    _softmax(x_ptr, p_ptr, V, BLOCK)
    if TOP_K:
        _keep_nearest(x_ptr, p_ptr, 0.0, top_k * 1.0, V, False, True, BLOCK)
        _softmax(x_ptr, p_ptr, V, BLOCK)
    if TOP_P:
        _keep_nearest(x_ptr, p_ptr, 0.0, top_p, V, False, False, BLOCK)
        _softmax(x_ptr, p_ptr, V, BLOCK)
    if MIN_P:
        _keep_likely(x_ptr, p_ptr, min_p * _largest(p_ptr, V, BLOCK), V, BLOCK)
        _softmax(x_ptr, p_ptr, V, BLOCK)
    if TYPICAL:
        _keep_nearest(x_ptr, p_ptr, _entropy(p_ptr, V, BLOCK), typical_p, V, True, False, BLOCK)
        _softmax(x_ptr, p_ptr, V, BLOCK)
    if EPSILON:
        _keep_likely(x_ptr, p_ptr, epsilon, V, BLOCK)
        _softmax(x_ptr, p_ptr, V, BLOCK)
    if ETA:
        floor = tl.minimum(eta, tl.sqrt(eta) * tl.exp(-_entropy(p_ptr, V, BLOCK)))
        _keep_likely(x_ptr, p_ptr, floor, V, BLOCK)
        _softmax(x_ptr, p_ptr, V, BLOCK)
    tl.store(token_ptr + b, _draw(p_ptr, tl.load(uniform_ptr + b), V, BLOCK))


@triton.jit
def _softmax(x_ptr, p_ptr, V, BLOCK: tl.constexpr):
    """Write p; all zeros where x is all -inf, all NaN where it has a NaN or +inf."""
    tl.debug_barrier()
    v = tl.arange(0, BLOCK)
    peaks = tl.full((BLOCK,), -float("inf"), tl.float32)
    for first in range(0, V, BLOCK):
        x = tl.load(x_ptr + first + v, mask=first + v < V, other=-float("inf"))
        peaks = tl.where(x > peaks, x, peaks)
    peak = tl.max(peaks, 0)
    nothing = peak == -float("inf")
    shift = tl.where(nothing, 0.0, peak)
    totals = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        x = tl.load(x_ptr + first + v, mask=first + v < V, other=-float("inf"))
        totals += tl.exp(x - shift)
    total = tl.sum(totals, 0)
    total = tl.where(total == 0.0, 1.0, total)
    for first in range(0, V, BLOCK):
        inside = first + v < V
        x = tl.load(x_ptr + first + v, mask=inside, other=-float("inf"))
        tl.store(p_ptr + first + v, tl.exp(x - shift) / total, mask=inside)
    tl.debug_barrier()


@triton.jit
def _ordered_key(x, p, entropy, TYPICAL: tl.constexpr):
    """The key of a token as a whole number in the same order: -x, or the distance of its surprisal from the entropy."""
    if TYPICAL:
        key = tl.where(p == 0.0, float("inf"), tl.abs(-tl.log(tl.where(p == 0.0, 1.0, p)) - entropy))
    else:
        key = 0.0 - x  # no negative zero
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _keep_nearest(x_ptr, p_ptr, entropy, wanted, V, TYPICAL: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Strike out the keys above the smallest one up to which `wanted` tokens (or their probability) are reached."""
    v = tl.arange(0, BLOCK)
    low = tl.full((), -2147483648, tl.int64)
    high = tl.full((), 2147483647, tl.int64)
    for _ in range(32):
        middle = (low + high) >> 1
        sums = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, V, BLOCK):
            inside = first + v < V
            x = tl.load(x_ptr + first + v, mask=inside, other=-float("inf"))
            p = tl.load(p_ptr + first + v, mask=inside, other=0.0)
            counted = inside & (_ordered_key(x, p, entropy, TYPICAL) <= middle)
            if COUNT:
                sums += counted.to(tl.float32)
            else:
                sums += tl.where(counted, p, 0.0)
        enough = tl.sum(sums, 0) >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    tl.debug_barrier()
    for first in range(0, V, BLOCK):
        inside = first + v < V
        x = tl.load(x_ptr + first + v, mask=inside, other=-float("inf"))
        p = tl.load(p_ptr + first + v, mask=inside, other=0.0)
        away = _ordered_key(x, p, entropy, TYPICAL) > low
        tl.store(x_ptr + first + v, -float("inf"), mask=inside & away & (x == x))


@triton.jit
def _keep_likely(x_ptr, p_ptr, floor, V, BLOCK: tl.constexpr):
    """Strike out tokens less likely than `floor`, the most likely excepted."""
    largest = _largest(p_ptr, V, BLOCK)
    v = tl.arange(0, BLOCK)
    for first in range(0, V, BLOCK):
        inside = first + v < V
        p = tl.load(p_ptr + first + v, mask=inside, other=0.0)
        tl.store(x_ptr + first + v, -float("inf"), mask=inside & (p < floor) & (p < largest))


@triton.jit
def _largest(p_ptr, V, BLOCK: tl.constexpr):
    v = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        p = tl.load(p_ptr + first + v, mask=first + v < V, other=0.0)
        peaks = tl.where(p > peaks, p, peaks)
    return tl.max(peaks, 0)


@triton.jit
def _entropy(p_ptr, V, BLOCK: tl.constexpr):
    v = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        p = tl.load(p_ptr + first + v, mask=first + v < V, other=0.0)
        sums -= p * tl.log(tl.where(p == 0.0, 1.0, p))
    return tl.sum(sums, 0)


@triton.jit
def _draw(p_ptr, uniform, V, BLOCK: tl.constexpr):
    """The first token whose cumulative probability exceeds uniform; -1 for a row without a distribution."""
    v = tl.arange(0, BLOCK)
    totals = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        totals += tl.load(p_ptr + first + v, mask=first + v < V, other=0.0)
    total = tl.sum(totals, 0)
    wanted = uniform * total
    reached = 0.0
    passed = 0
    last = -1
    for first in range(0, V, BLOCK):
        inside = first + v < V
        p = tl.load(p_ptr + first + v, mask=inside, other=0.0)
        cumulative = reached + tl.cumsum(p, 0)
        passed += tl.sum((inside & (cumulative <= wanted)).to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(p > 0.0, first + v, -1), 0))
        reached += tl.sum(p, 0)
    return tl.where(total > 0.0, tl.minimum(passed, last), -1)


_TYPES = {
    "x_ptr": "*fp32",
    "uniform_ptr": "*fp32",
    "p_ptr": "*fp32",
    "token_ptr": "*i64",
    "top_k": "i32",
    "top_p": "fp32",
    "min_p": "fp32",
    "typical_p": "fp32",
    "epsilon": "fp32",
    "eta": "fp32",
    "V": "i32",
}
_OFF = {"TOP_K": False, "TOP_P": False, "MIN_P": False, "TYPICAL": False, "EPSILON": False, "ETA": False}
_WARPS = row_block(LARGEST_CHUNK)[1]
AOT = [
    Ahead(_row, _TYPES, {**_OFF, "TOP_P": True, "BLOCK": LARGEST_CHUNK}, divisible=("V",), num_warps=_WARPS),
    Ahead(_row, _TYPES, {**dict.fromkeys(_OFF, True), "BLOCK": LARGEST_CHUNK}, divisible=("V",), num_warps=_WARPS),
]
