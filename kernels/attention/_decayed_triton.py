"""States that decay and are corrected, on the GPU: linear attention, Mamba-2 and the gated delta rule share these kernels.

Forward in two passes: `_states` walks over the chunks of a head and leaves the state each of them starts from, one program per
sequence, head and block of value columns; `_outputs` then computes all chunks at once. The gated delta rule first inverts the
triangular system of every chunk (`_inverses`). Backward likewise: states, gradients of states from the last chunk to the
first (`_state_gradients`), then all chunks at once (`_gradients`).

Axes: B batch, T position, K query/key head, G value heads per query/key head, M query/key width, H value width, L chunk,
C position in a chunk.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NARROWEST = 16  # the smallest side of a tile that tensor cores take
CHUNK = NARROWEST if INTERPRETED else 64
JOINS = (CHUNK // NARROWEST).bit_length() - 1


def width(size: int) -> int:
    """Width of a tile that holds one head."""
    return max(triton.next_power_of_2(size), NARROWEST)


def column_block(M: int, H: int, dtype: torch.dtype) -> int:
    """Value columns of a program: its state and its operands stay in registers."""
    widest = 32 if dtype == torch.float32 or M > 128 else 64
    return min(width(H), widest)


def walk(
    q_BTKM: Tensor,
    k_BTKM: Tensor,
    v_BTKGH: Tensor,
    state_BKGMH: Tensor,
    *,
    logs_BTKG: Tensor | None = None,
    gain_BTKG: Tensor | None = None,
    skip_KG: Tensor | None = None,
    total_BKM: Tensor | None = None,
    beta_BTKG: Tensor | None = None,
    feature: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (out_BTKGH, state_BKGMH, total_BKM) after the last position, in the dtype of the values.

    `logs` is the log of the decay, `gain` multiplies the values, `skip` of them goes straight to the result, `total` is the sum
    of keys that weighs the result, `beta` makes it the gated delta rule, `feature` maps queries and keys by elu + 1.
    """
    q, k, v, state = (x.contiguous() for x in (q_BTKM, k_BTKM, v_BTKGH, state_BKGMH))
    logs, gain, skip, total, beta = (
        None if x is None else x.contiguous() for x in (logs_BTKG, gain_BTKG, skip_KG, total_BKM, beta_BTKG)
    )
    B, T, K, G, H = v.shape
    out, after = torch.empty_like(v), state.clone()
    total_after = None if total is None else total.clone()
    if v.numel() == 0 or state.numel() == 0:
        return out, after, total_after
    values = v
    inverses = torch.empty(0, device=v.device)
    L = triton.cdiv(T, CHUNK)
    if beta is not None:
        inverses = v.new_empty((B, L, K, G, CHUNK, CHUNK), dtype=torch.float32)
        _inverses[(L, K * G, B)](
            k, beta, logs, inverses, T, JOINS, K=K, G=G, M=q.shape[3], WIDTH=width(q.shape[3]), CHUNK=CHUNK, num_warps=8
        )
        values = torch.empty_like(v)
    starts, totals = _start_states(
        k, v, logs, gain, state, total, inverses, values, after, total_after, feature, beta is not None
    )
    columns = column_block(q.shape[3], H, v.dtype)
    _outputs[(L * triton.cdiv(H, columns), K * G, B)](
        q, k, values, v, logs, gain, skip, starts, totals, out, T,
        K=K, G=G, M=q.shape[3], H=H, WIDTH=width(q.shape[3]), COLUMNS=columns, CHUNK=CHUNK, FEATURE=feature,
        COUNTED=total is not None, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out, after, total_after


def _start_states(
    k: Tensor,
    v: Tensor,
    logs: Tensor | None,
    gain: Tensor | None,
    state: Tensor,
    total: Tensor | None,
    inverses: Tensor,
    values: Tensor,
    after: Tensor,
    total_after: Tensor | None,
    feature: bool,
    delta: bool,
) -> tuple[Tensor, Tensor]:
    """The state and the sum of keys that every chunk starts from, in float32; fills what comes after, and values if delta."""
    B, T, K, G, H = v.shape
    M = k.shape[3]
    L = triton.cdiv(T, CHUNK)
    columns = column_block(M, H, v.dtype)
    starts = v.new_empty((B, L, K, G, M, H), dtype=torch.float32)
    totals = v.new_empty((B, L, K, M) if total is not None else (1,), dtype=torch.float32)
    _states[(triton.cdiv(H, columns), K * G, B)](
        k, v, logs, gain, state, total, inverses, values, starts, totals, after, total_after, T,
        K=K, G=G, M=M, H=H, WIDTH=width(M), COLUMNS=columns, CHUNK=CHUNK, FEATURE=feature, COUNTED=total is not None,
        DELTA=delta, num_warps=4, num_stages=2,
    )  # fmt: skip
    return starts, totals


@triton.jit
def _dot(a, b):
    """Products of float32 stay float32; halves go to the tensor cores."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _mapped(x, inside, FEATURE: tl.constexpr):
    """elu(x) + 1 of queries and keys, in their dtype; zero outside."""
    if FEATURE:
        wide = x.to(tl.float32)
        x = tl.where(inside, tl.where(wide > 0, wide + 1.0, tl.exp(tl.minimum(wide, 0.0))), 0.0).to(x.dtype)
    return x


@triton.jit
def _segments(logs, CHUNK: tl.constexpr):
    """Decay from position s to position t, (t, s); zero for later s. Every segment is summed on its own."""
    t = tl.arange(0, CHUNK)
    terms = tl.where(t[:, None] > t[None, :], logs[:, None], 0.0)
    return tl.where(t[:, None] >= t[None, :], tl.exp(tl.cumsum(terms, 0)), 0.0)


@triton.jit
def _inverses(
    k_ptr, beta_ptr, logs_ptr, inverse_ptr, T, JOINS,
    K: tl.constexpr, G: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: (I + beta decay (k k') below the diagonal)^-1 beta, blocks of 16 first, then joined in pairs."""
    chunk = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    c = tl.arange(0, CHUNK)
    m = tl.arange(0, WIDTH)
    t = chunk * CHUNK + c
    row = b * T + t
    inside = (t < T)[:, None] & (m < M)[None, :]
    k = tl.load(k_ptr + ((row * K + head // G) * M)[:, None] + m[None, :], mask=inside, other=0.0)
    beta = tl.load(beta_ptr + row * (K * G) + head, mask=t < T, other=0.0).to(tl.float32)
    logs = tl.load(logs_ptr + row * (K * G) + head, mask=t < T, other=0.0).to(tl.float32)
    below = beta[:, None] * _segments(logs, CHUNK) * _dot(k, tl.trans(k))
    below = tl.where(c[:, None] > c[None, :], below, 0.0)
    at = ((b * tl.num_programs(0) + chunk) * (K * G) + head) * (CHUNK * CHUNK)
    square = c[:, None] * CHUNK + c[None, :]
    tl.store(inverse_ptr + at + square, below)  # parked there until the blocks are joined: registers are short
    tl.debug_barrier()
    near = tl.where((c // 16)[:, None] == (c // 16)[None, :], below, 0.0)
    blocks: tl.constexpr = CHUNK // 16
    near = tl.reshape(near, (blocks, 16, CHUNK))
    inverse = tl.reshape(tl.where(c[:, None] == c[None, :], 1.0, 0.0), (blocks, 16, CHUNK))
    r = tl.arange(0, 16)[None, :, None]
    for i in range(1, 16):  # row i of every block at once: minus what the rows before it contribute
        row_i = tl.reshape(tl.sum(tl.sum(tl.where(r == i, near, 0.0), 1), 0), (blocks, 16))
        contributed = tl.sum(row_i[:, :, None] * inverse, 1)
        inverse = tl.where(r == i, inverse - contributed[:, None, :], inverse)
    inverse = tl.reshape(inverse, (CHUNK, CHUNK))
    size = 16
    for _ in range(JOINS):  # inverses of diagonal blocks become those of blocks of twice the size
        same_pair = (c // (2 * size))[:, None] == (c // (2 * size))[None, :]
        corner = tl.load(inverse_ptr + at + square, mask=same_pair & ((c // size)[:, None] > (c // size)[None, :]), other=0.0)
        through = tl.dot(corner, inverse, input_precision="tf32x3")
        inverse -= tl.dot(inverse, through, input_precision="tf32x3")
        size *= 2
    tl.debug_barrier()
    tl.store(inverse_ptr + at + square, inverse * beta[None, :])


@triton.jit
def _states(
    k_ptr, v_ptr, logs_ptr, gain_ptr, state_ptr, total_ptr, inverse_ptr, values_ptr, starts_ptr, totals_ptr, after_ptr,
    total_after_ptr, T,
    K: tl.constexpr, G: tl.constexpr, M: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, FEATURE: tl.constexpr, COUNTED: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """Walk over the chunks of one head; leave the state that each starts from."""
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    heads = K * G
    c = tl.arange(0, CHUNK)
    m = tl.arange(0, WIDTH)
    h = block * COLUMNS + tl.arange(0, COLUMNS)
    kept = (m < M)[:, None] & (h < H)[None, :]
    place = m[:, None] * H + h[None, :]
    state = tl.load(state_ptr + (b * heads + head) * (M * H) + place, mask=kept, other=0.0).to(tl.float32)
    if COUNTED:
        total = tl.load(total_ptr + (b * K + head // G) * M + m, mask=m < M, other=0.0).to(tl.float32)
    chunks = tl.cdiv(T, CHUNK)
    for chunk in range(chunks):
        at = (b * chunks + chunk) * heads + head
        tl.store(starts_ptr + at * (M * H) + place, state, mask=kept)
        t = chunk * CHUNK + c
        row = b * T + t
        inside = (t < T)[:, None] & (m < M)[None, :]
        k = tl.load(k_ptr + ((row * K + head // G) * M)[:, None] + m[None, :], mask=inside, other=0.0)
        k = _mapped(k, inside, FEATURE)
        here = (t < T)[:, None] & (h < H)[None, :]
        to_values = ((row * heads + head) * H)[:, None] + h[None, :]
        v = tl.load(v_ptr + to_values, mask=here, other=0.0)
        by = tl.full((CHUNK,), 1.0, tl.float32)
        through = 1.0
        if logs_ptr is not None:
            later = (c + 1 < CHUNK) & (t + 1 < T)
            logs = tl.load(logs_ptr + row * heads + head, mask=t < T, other=0.0).to(tl.float32)
            shifted = tl.load(logs_ptr + (row + 1) * heads + head, mask=later, other=0.0).to(tl.float32)
            by = tl.exp(tl.cumsum(shifted, 0, reverse=True))
            through = tl.exp(tl.sum(logs, 0))
        if DELTA:
            since = tl.exp(tl.cumsum(logs, 0))
            held = since[:, None] * _dot(k, state.to(k.dtype))
            square = c[:, None] * CHUNK + c[None, :]
            inverse = tl.load(inverse_ptr + at * (CHUNK * CHUNK) + square)
            v = _dot(inverse.to(v.dtype), (v.to(tl.float32) - held).to(v.dtype)).to(v.dtype)
            tl.store(values_ptr + to_values, v, mask=here)
        if gain_ptr is not None:
            by *= tl.load(gain_ptr + row * heads + head, mask=t < T, other=0.0).to(tl.float32)
        state = through * state + _dot(tl.trans(k), (by[:, None] * v.to(tl.float32)).to(v.dtype))
        if COUNTED:
            to_totals = totals_ptr + ((b * chunks + chunk) * K + head // G) * M + m
            tl.store(to_totals, total, mask=(m < M) & (block == 0))
            total += tl.sum(k.to(tl.float32), 0)
    tl.store(after_ptr + (b * heads + head) * (M * H) + place, state.to(after_ptr.dtype.element_ty), mask=kept)
    if COUNTED:
        to_total = total_after_ptr + (b * K + head // G) * M + m
        tl.store(to_total, total.to(total_after_ptr.dtype.element_ty), mask=(m < M) & (block == 0))


@triton.jit
def _outputs(
    q_ptr, k_ptr, values_ptr, v_ptr, logs_ptr, gain_ptr, skip_ptr, starts_ptr, totals_ptr, out_ptr, T,
    K: tl.constexpr, G: tl.constexpr, M: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, FEATURE: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: masked scores within it, the state it starts from for all that came before."""
    chunks = tl.cdiv(T, CHUNK)
    chunk = tl.program_id(0) % chunks
    block = tl.program_id(0) // chunks
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    heads = K * G
    c = tl.arange(0, CHUNK)
    m = tl.arange(0, WIDTH)
    h = block * COLUMNS + tl.arange(0, COLUMNS)
    t = chunk * CHUNK + c
    row = b * T + t
    inside = (t < T)[:, None] & (m < M)[None, :]
    to_keys = ((row * K + head // G) * M)[:, None] + m[None, :]
    q = _mapped(tl.load(q_ptr + to_keys, mask=inside, other=0.0), inside, FEATURE)
    k = _mapped(tl.load(k_ptr + to_keys, mask=inside, other=0.0), inside, FEATURE)
    here = (t < T)[:, None] & (h < H)[None, :]
    to_values = ((row * heads + head) * H)[:, None] + h[None, :]
    values = tl.load(values_ptr + to_values, mask=here, other=0.0)
    kept = (m < M)[:, None] & (h < H)[None, :]
    at = (b * chunks + chunk) * heads + head
    state = tl.load(starts_ptr + at * (M * H) + m[:, None] * H + h[None, :], mask=kept, other=0.0)
    weights = tl.where(c[:, None] >= c[None, :], _dot(q, tl.trans(k)), 0.0)
    before = _dot(q, state.to(q.dtype))
    if logs_ptr is not None:
        logs = tl.load(logs_ptr + row * heads + head, mask=t < T, other=0.0).to(tl.float32)
        weights *= _segments(logs, CHUNK)
        before *= tl.exp(tl.cumsum(logs, 0))[:, None]
    if gain_ptr is not None:
        weights *= tl.load(gain_ptr + row * heads + head, mask=t < T, other=0.0).to(tl.float32)[None, :]
    out = before + _dot(weights.to(values.dtype), values)
    if COUNTED:
        total = tl.load(totals_ptr + ((b * chunks + chunk) * K + head // G) * M + m, mask=m < M, other=0.0)
        weight = tl.sum(weights, 1) + tl.sum(q.to(tl.float32) * total[None, :], 1)
        out /= tl.where(t < T, weight, 1.0)[:, None]
    if skip_ptr is not None:
        v = tl.load(v_ptr + to_values, mask=here, other=0.0)
        out += tl.load(skip_ptr + head).to(tl.float32) * v.to(tl.float32)
    tl.store(out_ptr + to_values, out.to(out_ptr.dtype.element_ty), mask=here)


def walk_ahead(dtype: str, K: int, G: int, M: int, H: int, *, kind: str) -> list[Ahead]:
    """The forward kernels as `walk` launches them for bf16 or fp16; `kind` is linear, mamba2 or gated_delta."""
    columns = column_block(M, H, torch.bfloat16)
    shape = {"K": K, "G": G, "M": M, "WIDTH": width(M), "CHUNK": CHUNK}
    wide = shape | {"H": H, "COLUMNS": columns, "FEATURE": kind == "linear", "COUNTED": kind == "linear"}
    inputs = f"*{dtype}"
    scratch = ("inverse_ptr", "starts_ptr", "totals_ptr", *(("logs_ptr",) if kind == "mamba2" else ()))
    absent = {
        "linear": ("logs_ptr", "gain_ptr", "skip_ptr"),
        "mamba2": ("total_ptr", "total_after_ptr"),
        "gated_delta": ("gain_ptr", "skip_ptr", "total_ptr", "total_after_ptr"),
    }[kind]

    def entry(kernel: Any, kept: tuple[str, ...], constants: dict[str, Any], stages: int, num_warps: int = 4) -> Ahead:
        names = [name for name in kernel.arg_names if name.endswith("_ptr")]
        types = {name: "*fp32" if name in kept else inputs for name in names if name not in absent}
        types |= {"T": "i32"} | ({"JOINS": "i32"} if kernel is _inverses else {})
        none = {name: None for name in names if name in absent}
        return Ahead(kernel, types, constants | none, num_warps=num_warps, num_stages=stages, dot=True)

    found = [
        entry(_states, scratch, {**wide, "DELTA": kind == "gated_delta"}, 2),
        entry(_outputs, scratch, wide, 2),
    ]
    return found + ([entry(_inverses, scratch, shape, 3, num_warps=8)] if kind == "gated_delta" else [])
