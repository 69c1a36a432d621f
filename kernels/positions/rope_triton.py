"""Rotary embedding on the GPU: one program per position and group of heads, which share sines and cosines in registers.

The angle is reduced to an eighth of a turn in float64, where far positions need it; the polynomials are float32.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead
from llmlab.kernels.twin import twin
from llmlab.reference.positions.rope import ROPE, inverse_frequencies

HEADS = 8  # per program
WARPS = 2


@twin(ROPE, backend="triton")
def rope(
    x_BTNH: Tensor,
    positions_BT: Tensor,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    frequencies: Tensor | None = None,
) -> Tensor:
    if frequencies is None:
        frequencies = _frequencies(x_BTNH.shape[-1], theta, x_BTNH.device)
    return rotate(x_BTNH, positions_BT, frequencies, interleaved=interleaved)


@lru_cache(maxsize=64)
def _frequencies(head_width: int, theta: float, device: torch.device) -> Tensor:
    return torch.from_numpy(inverse_frequencies(head_width, theta)).to(device)


def rotate(x_BTNH: Tensor, positions_BT: Tensor, frequencies_R: Tensor, *, interleaved: bool) -> Tensor:
    """Turn every pair by position * frequency."""
    N, H = x_BTNH.shape[2:]
    if 2 * frequencies_R.numel() != H:
        raise ValueError(f"{frequencies_R.numel()} frequencies do not make H={H} a head of pairs")
    x_BTNH, positions_BT = x_BTNH.contiguous(), positions_BT.contiguous()
    frequencies_R = frequencies_R.to(x_BTNH.device, torch.float64)
    out_BTNH = torch.empty_like(x_BTNH)
    if x_BTNH.numel():
        grid = (positions_BT.numel(), triton.cdiv(N, HEADS))
        pair_stride, half_stride = (2, 1) if interleaved else (1, H // 2)
        arrays = x_BTNH, positions_BT, frequencies_R, out_BTNH
        _heads[grid](
            *arrays, N, H, pair_stride, half_stride, HEADS=HEADS, PAIRS=triton.next_power_of_2(H // 2), num_warps=WARPS
        )
    return out_BTNH


@triton.jit
def sincos(angle):
    """Sine and cosine in float32 of a float64 angle."""
    quarters = angle * 0.6366197723675814  # 2 / pi
    whole = tl.floor(quarters + 0.5)
    r = ((quarters - whole) * 1.5707963267948966).to(tl.float32)
    square = r * r
    sine = r * (1.0 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880)))))
    cosine = 1.0 + square * (-0.5 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    turn = whole.to(tl.int64) & 3
    odd = (turn & 1) != 0
    out_sine = tl.where(odd, cosine, sine)
    out_cosine = tl.where(odd, sine, cosine)
    return tl.where(turn >= 2, -out_sine, out_sine), tl.where((turn == 1) | (turn == 2), -out_cosine, out_cosine)


@triton.jit
def _heads(
    x_ptr,
    positions_ptr,
    frequencies_ptr,
    out_ptr,
    N,
    H,
    pair_stride,  # from one pair to the next
    half_stride,  # from a pair's first member to its second
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, PAIRS)
    n = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    a_pair = 2 * r < H
    position = tl.load(positions_ptr + m).to(tl.float64)
    sine, cosine = sincos(position * tl.load(frequencies_ptr + r, mask=a_pair, other=0.0))
    first = m * N * H + n[:, None] * H + r[None, :] * pair_stride
    inside = (n < N)[:, None] & a_pair[None, :]
    a = tl.load(x_ptr + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + first + half_stride, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + first, (a * cosine[None, :] - b * sine[None, :]).to(kind), mask=inside)
    tl.store(out_ptr + first + half_stride, (b * cosine[None, :] + a * sine[None, :]).to(kind), mask=inside)


_TYPES = {
    "x_ptr": "*bf16",
    "positions_ptr": "*i64",
    "frequencies_ptr": "*fp64",
    "out_ptr": "*bf16",
    **dict.fromkeys(("N", "H", "pair_stride", "half_stride"), "i32"),
}
AOT = [Ahead(_heads, _TYPES, {"HEADS": HEADS, "PAIRS": 64}, divisible=("H", "half_stride"), num_warps=WARPS)]
