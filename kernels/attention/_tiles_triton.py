"""Tiled softmax attention on the GPU: one forward kernel, its merge and two backward kernels that the family's twins share.

One program per (sequence, key head, block of rows, part of the keys). A row is one query head of one token, so the G heads
that share keys share every tile of them; queries, running maximum, sum and result stay in registers. Everything is a packed
batch, contiguous: sequence b owns queries query_starts[b] .. query_starts[b + 1] and its keys likewise, or pages of a pool.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmlab.kernels.ahead import Ahead

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CPU = tl.constexpr(INTERPRETED)
LOG2_E = math.log2(math.e)
IN_ONE_TILE = 16  # the smallest side of a tile that tensor cores take


@dataclass(frozen=True)
class Tiles:
    """Rows and keys of a tile, and how its program is launched."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def head_width(H: int) -> int:
    """Width of a tile that holds one head."""
    return max(triton.next_power_of_2(H), IN_ONE_TILE)


def forward_tiles(dtype: torch.dtype, H: int, rows: int, *, biased: bool = False) -> Tiles:
    """Tile of the forward kernel: 128 rows for tensor cores' widest instruction; few rows for decode."""
    if INTERPRETED:
        return Tiles(IN_ONE_TILE, IN_ONE_TILE, 4, 1)
    if rows <= 32:
        return Tiles(max(triton.next_power_of_2(rows), IN_ONE_TILE), 64 if H <= 128 else 32, 4, 2)
    if dtype == torch.float32:
        return Tiles(64, 32, 4, 2)
    if biased and H > 64:
        return Tiles(64, 64, 8, 2)  # the tile of bias takes registers too
    return Tiles(128, 64 if H <= 128 else 32, 8, 3 if H <= 128 else 2)  # wider tiles spill registers


def backward_tiles(dtype: torch.dtype, H: int) -> Tiles:
    """Tile of both backward kernels."""
    if INTERPRETED:
        return Tiles(IN_ONE_TILE, IN_ONE_TILE, 4, 1)
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    return Tiles(64, 64, 4 if H <= 64 else 8, 2 if H <= 128 else 1)


def even_starts(batch: int, tokens: int, device: torch.device) -> Tensor:
    """Boundaries of a batch of equally long sequences."""
    return torch.arange(batch + 1, device=device, dtype=torch.int64) * tokens


def forward(
    q_UKGH: Tensor,
    k_WKH: Tensor,
    v_WKH: Tensor,
    query_starts_Z: Tensor,
    key_starts_Z: Tensor,
    longest: int,
    *,
    causal: bool,
    window: int = 0,
    table_BM: Tensor | None = None,
    page: int = 1,
    splits: int = 1,
    keep_W: Tensor | None = None,
    bias_KTS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (out_UKGH, lse_UKG), lse in float32.

    `longest` is the number of queries of the longest sequence, `window` 0 is none. With a block table, keys and values are
    pools of pages of `page` tokens, flattened, and `key_starts_Z` holds the context lengths. `keep_W` hides keys; `bias_KTS`
    adds to the scores of every sequence.
    """
    q, k, v = q_UKGH.contiguous(), k_WKH.contiguous(), v_WKH.contiguous()
    U, K, G, H = q.shape
    sequences = len(query_starts_Z) - 1
    out, lse = torch.zeros_like(q), q.new_full((U, K, G), -math.inf, dtype=torch.float32)
    if q.numel() == 0 or k.numel() == 0 or longest == 0:
        return out, lse
    tiles = forward_tiles(q.dtype, H, longest * G, biased=bias_KTS is not None)
    part_out, part_lse = out, lse
    if splits > 1:
        part_out = q.new_zeros((splits, U, K, G, H), dtype=torch.float32)
        part_lse = lse.expand(splits, U, K, G).contiguous()
    row_blocks = triton.cdiv(longest * G, tiles.rows)
    table = table_BM.contiguous() if table_BM is not None else query_starts_Z
    keep, bias = (None if x is None else x.contiguous() for x in (keep_W, bias_KTS))
    _forward[(row_blocks * splits, K, sequences)](
        q, k, v, part_out, part_lse, query_starts_Z.contiguous(), key_starts_Z.contiguous(), table,
        keep, bias, H**-0.5 * LOG2_E, U, window, table.shape[-1],
        K=K, G=G, H=H, HEAD=head_width(H), PAGE=page, CAUSAL=causal, WINDOWED=window > 0, PAGED=table_BM is not None,
        SPLITS=splits, ROWS=tiles.rows, KEYS=tiles.keys, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    if splits > 1:
        _merge[(U * K * G,)](
            part_out, part_lse, out, lse, U * K * G, H=H, HEAD=head_width(H), SPLITS=splits,
            PARTS=triton.next_power_of_2(splits), num_warps=4,
        )  # fmt: skip
    return out, lse


def backward(
    dout_UKGH: Tensor,
    dlse_UKG: Tensor | None,
    q_UKGH: Tensor,
    k_WKH: Tensor,
    v_WKH: Tensor,
    query_starts_Z: Tensor,
    key_starts_Z: Tensor,
    longest: int,
    longest_keys: int,
    *,
    causal: bool,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dq_UKGH, dk_WKH, dv_WKH)."""
    q, k, v, dout = q_UKGH.contiguous(), k_WKH.contiguous(), v_WKH.contiguous(), dout_UKGH.contiguous()
    _, K, G, H = q.shape
    query_starts, key_starts = query_starts_Z.contiguous(), key_starts_Z.contiguous()
    out, lse = forward(q, k, v, query_starts, key_starts, longest, causal=causal, window=window)
    drift = (dout.float() * out.float()).sum(-1)
    if dlse_UKG is not None:
        drift = drift - dlse_UKG.float()
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if q.numel() == 0 or k.numel() == 0 or longest == 0 or longest_keys == 0:
        return dq, dk, dv
    tiles = backward_tiles(q.dtype, H)
    shared = {
        "K": K, "G": G, "H": H, "HEAD": head_width(H), "CAUSAL": causal, "WINDOWED": window > 0,
        "ROWS": tiles.rows, "KEYS": tiles.keys, "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
    }  # fmt: skip
    sequences = len(query_starts) - 1
    given = (q, k, v, dout, lse, drift.contiguous(), query_starts, key_starts, H**-0.5, window)
    _backward_keys[(triton.cdiv(longest_keys, tiles.keys), K, sequences)](*given, dk, dv, **shared)
    _backward_rows[(triton.cdiv(longest * G, tiles.rows), K, sequences)](*given, dq, **shared)
    return dq, dk, dv


@triton.jit
def _dot(a, b):
    """Products of float32 stay float32; halves go to the tensor cores."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _largest(x, axis: tl.constexpr):
    """Maximum that ignores NaN, as the GPU's does; the interpreter warns about nothing but NaN."""
    if ON_CPU:
        x = tl.where(x == x, x, -float("inf"))
    return tl.max(x, axis)


@triton.jit
def _key_rows(n, first_key, table_ptr, PAGE: tl.constexpr, PAGED: tl.constexpr, inside):
    """Where keys n of a sequence lie in the packed keys or in the pool."""
    if PAGED:
        page = tl.load(table_ptr + n // PAGE, mask=inside, other=0).to(tl.int64)
        rows = page * PAGE + n % PAGE
    else:
        rows = first_key + n
    return rows


@triton.jit
def _limits(position, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """First and one past the last key a query at `position` sees."""
    low = position * 0
    high = low + S
    if CAUSAL:
        high = tl.minimum(position + 1, S)
    if WINDOWED:
        low = tl.maximum(position - window + 1, 0)
    return low, high


@triton.jit
def _walk(
    acc, total, peak, q, k_ptr, v_ptr, first_key, table_ptr, keep_ptr, bias_ptr, t, head, low, high, begin, end, S, scale,
    K: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr, PAGED: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Pass over keys begin .. end in tiles; without MASKED every row sees all of them."""
    h = tl.arange(0, HEAD)
    for start in range(begin, end, KEYS):
        n = start + tl.arange(0, KEYS)
        rows = _key_rows(n, first_key, table_ptr, PAGE, PAGED, n < S)
        at = (rows * K + head) * H
        if MASKED:
            inside = (n < S)[None, :] & (h < H)[:, None]
            k = tl.load(k_ptr + at[None, :] + h[:, None], mask=inside, other=0.0)
        elif HEAD == H:
            k = tl.load(k_ptr + at[None, :] + h[:, None])
        else:
            k = tl.load(k_ptr + at[None, :] + h[:, None], mask=(h < H)[:, None], other=0.0)
        scores = _dot(q, k) * scale
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + t[:, None] * S + n[None, :], mask=(n < S)[None, :], other=0.0)
            scores += bias.to(tl.float32) * 1.4426950408889634
        if keep_ptr is not None:
            keep = tl.load(keep_ptr + first_key + n, mask=n < S, other=0).to(tl.int32)
            scores = tl.where(keep[None, :] != 0, scores, -float("inf"))
        if MASKED:
            scores = tl.where((n[None, :] >= low[:, None]) & (n[None, :] < high[:, None]), scores, -float("inf"))
        new_peak = tl.maximum(peak, _largest(scores, 1))
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(peak - shift)
        total = total * shrink + tl.sum(weights, 1)
        if MASKED:
            inside_v = (n < S)[:, None] & (h < H)[None, :]
            v = tl.load(v_ptr + at[:, None] + h[None, :], mask=inside_v, other=0.0)
        elif HEAD == H:
            v = tl.load(v_ptr + at[:, None] + h[None, :])
        else:
            v = tl.load(v_ptr + at[:, None] + h[None, :], mask=(h < H)[None, :], other=0.0)
        acc = acc * shrink[:, None] + _dot(weights.to(v.dtype), v)
        peak = new_peak
    return acc, total, peak


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, query_starts_ptr, key_starts_ptr, table_ptr, keep_ptr, bias_ptr, scale, tokens,
    window, table_width,
    K: tl.constexpr, G: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr, PAGED: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    blocks = tl.num_programs(0) // SPLITS
    block = blocks - 1 - tl.program_id(0) // SPLITS  # the longest rows of a causal sequence first
    split = tl.program_id(0) % SPLITS
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.load(query_starts_ptr + b).to(tl.int64)
    T = (tl.load(query_starts_ptr + b + 1).to(tl.int64) - first_query).to(tl.int32)
    if PAGED:
        first_key = first_query * 0
        S = tl.load(key_starts_ptr + b).to(tl.int32)
        table_ptr += b * table_width
    else:
        first_key = tl.load(key_starts_ptr + b).to(tl.int64)
        S = (tl.load(key_starts_ptr + b + 1).to(tl.int64) - first_key).to(tl.int32)
    row0 = block * ROWS
    if row0 < T * G:
        r = row0 + tl.arange(0, ROWS)
        h = tl.arange(0, HEAD)
        present = r < T * G
        row = ((first_query + r // G) * K + head) * G + r % G
        q = tl.load(q_ptr + row[:, None] * H + h[None, :], mask=present[:, None] & (h < H)[None, :], other=0.0)
        low, high = _limits(S - T + r // G, S, window, CAUSAL, WINDOWED)
        t = head * T + tl.minimum(r // G, T - 1)  # row of a bias
        # Keys any row of the block sees, cut into SPLITS runs of whole tiles; between them lie those all rows see.
        last_row = tl.minimum(row0 + ROWS, T * G) - 1
        lowest, all_high = _limits(S - T + row0 // G, S, window, CAUSAL, WINDOWED)
        all_low, highest = _limits(S - T + last_row // G, S, window, CAUSAL, WINDOWED)
        begin = tl.maximum(lowest, 0) // KEYS * KEYS
        run = tl.cdiv(tl.cdiv(tl.maximum(highest - begin, 0), KEYS), SPLITS) * KEYS
        begin += split * run
        end = tl.minimum(begin + run, tl.maximum(highest, 0))
        end = tl.maximum(end, begin)
        middle = tl.minimum(tl.maximum(tl.cdiv(all_low, KEYS) * KEYS, begin), end)
        tail = tl.minimum(tl.maximum(tl.maximum(all_high, 0) // KEYS * KEYS, middle), end)
        acc = tl.zeros((ROWS, HEAD), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        peak = tl.full((ROWS,), -float("inf"), tl.float32)
        if WINDOWED:
            acc, total, peak = _walk(
                acc, total, peak, q, k_ptr, v_ptr, first_key, table_ptr, keep_ptr, bias_ptr, t, head, low, high,
                begin, middle, S, scale, K, H, HEAD, PAGE, PAGED, KEYS, True,
            )  # fmt: skip
        acc, total, peak = _walk(
            acc, total, peak, q, k_ptr, v_ptr, first_key, table_ptr, keep_ptr, bias_ptr, t, head, low, high,
            middle, tail, S, scale, K, H, HEAD, PAGE, PAGED, KEYS, False,
        )  # fmt: skip
        acc, total, peak = _walk(
            acc, total, peak, q, k_ptr, v_ptr, first_key, table_ptr, keep_ptr, bias_ptr, t, head, low, high,
            tail, end, S, scale, K, H, HEAD, PAGE, PAGED, KEYS, True,
        )  # fmt: skip
        divisor = tl.where(total == 0.0, 1.0, total)
        out = acc / divisor[:, None]
        lse = (peak + tl.log2(divisor)) * 0.6931471805599453  # peak is -inf where total is 0
        target = split.to(tl.int64) * tokens * (K * G) + row
        within = present[:, None] & (h < H)[None, :]
        tl.store(out_ptr + target[:, None] * H + h[None, :], out.to(out_ptr.dtype.element_ty), mask=within)
        tl.store(lse_ptr + target, lse, mask=present)


@triton.jit
def _merge(
    part_out_ptr, part_lse_ptr, out_ptr, lse_ptr, rows,
    H: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One row: every part weighs its share of the whole sum of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, PARTS)
    h = tl.arange(0, HEAD)
    at = w.to(tl.int64) * rows + row
    lse = tl.load(part_lse_ptr + at, mask=w < SPLITS, other=-float("inf"))
    peak = _largest(lse, 0)
    share = tl.exp2((lse - tl.where(peak == -float("inf"), 0.0, peak)) * 1.4426950408889634)
    total = tl.sum(share, 0)
    within = (w < SPLITS)[:, None] & (h < H)[None, :]
    parts = tl.load(part_out_ptr + at[:, None] * H + h[None, :], mask=within, other=0.0)
    divisor = tl.where(total == 0.0, 1.0, total)
    out = tl.sum(parts * share[:, None], 0) / divisor
    tl.store(out_ptr + row * H + h, out.to(out_ptr.dtype.element_ty), mask=h < H)
    tl.store(lse_ptr + row, peak + tl.log2(divisor) * 0.6931471805599453)


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, drift_ptr, query_starts_ptr, key_starts_ptr, scale, window, dk_ptr, dv_ptr,
    K: tl.constexpr, G: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of keys stays; all rows that see it pass by. Scores are held transposed, keys by rows."""
    start = tl.program_id(0) * KEYS
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.load(query_starts_ptr + b).to(tl.int64)
    first_key = tl.load(key_starts_ptr + b).to(tl.int64)
    T = (tl.load(query_starts_ptr + b + 1).to(tl.int64) - first_query).to(tl.int32)
    S = (tl.load(key_starts_ptr + b + 1).to(tl.int64) - first_key).to(tl.int32)
    if start < S:
        n = start + tl.arange(0, KEYS)
        h = tl.arange(0, HEAD)
        inside = (n < S)[:, None] & (h < H)[None, :]
        at = ((first_key + n) * K + head)[:, None] * H + h[None, :]
        k = tl.load(k_ptr + at, mask=inside, other=0.0)
        v = tl.load(v_ptr + at, mask=inside, other=0.0)
        dk = tl.zeros((KEYS, HEAD), tl.float32)
        dv = tl.zeros((KEYS, HEAD), tl.float32)
        begin, end = 0, T * G
        if CAUSAL:
            begin = tl.maximum(start - (S - T), 0) * G // ROWS * ROWS
        if WINDOWED:
            end = tl.minimum(tl.maximum(start + KEYS - 1 + window - (S - T), 0) * G, end)
        for row0 in range(begin, end, ROWS):
            r = row0 + tl.arange(0, ROWS)
            present = r < T * G
            row = ((first_query + r // G) * K + head) * G + r % G
            here = present[:, None] & (h < H)[None, :]
            q = tl.load(q_ptr + row[:, None] * H + h[None, :], mask=here, other=0.0)
            dout = tl.load(dout_ptr + row[:, None] * H + h[None, :], mask=here, other=0.0)
            lse = tl.load(lse_ptr + row, mask=present, other=0.0)
            drift = tl.load(drift_ptr + row, mask=present, other=0.0)
            low, high = _limits(S - T + r // G, S, window, CAUSAL, WINDOWED)
            shift = tl.where(lse == -float("inf"), 0.0, lse) * 1.4426950408889634
            scores = _dot(k, tl.trans(q)) * (scale * 1.4426950408889634) - shift[None, :]
            seen = (n[:, None] >= low[None, :]) & (n[:, None] < high[None, :]) & present[None, :]
            weights = tl.where(seen, tl.exp2(scores), 0.0)
            dv += _dot(weights.to(dout.dtype), dout)
            dscores = weights * (_dot(v, tl.trans(dout)) - drift[None, :])
            dk += _dot(dscores.to(q.dtype), q)
        tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
        tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_rows(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, drift_ptr, query_starts_ptr, key_starts_ptr, scale, window, dq_ptr,
    K: tl.constexpr, G: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of rows stays; all keys it sees pass by."""
    row0 = tl.program_id(0) * ROWS
    head = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    first_query = tl.load(query_starts_ptr + b).to(tl.int64)
    first_key = tl.load(key_starts_ptr + b).to(tl.int64)
    T = (tl.load(query_starts_ptr + b + 1).to(tl.int64) - first_query).to(tl.int32)
    S = (tl.load(key_starts_ptr + b + 1).to(tl.int64) - first_key).to(tl.int32)
    if row0 < T * G:
        r = row0 + tl.arange(0, ROWS)
        h = tl.arange(0, HEAD)
        present = r < T * G
        row = ((first_query + r // G) * K + head) * G + r % G
        here = present[:, None] & (h < H)[None, :]
        q = tl.load(q_ptr + row[:, None] * H + h[None, :], mask=here, other=0.0)
        dout = tl.load(dout_ptr + row[:, None] * H + h[None, :], mask=here, other=0.0)
        lse = tl.load(lse_ptr + row, mask=present, other=0.0)
        drift = tl.load(drift_ptr + row, mask=present, other=0.0)
        shift = tl.where(lse == -float("inf"), 0.0, lse) * 1.4426950408889634
        low, high = _limits(S - T + r // G, S, window, CAUSAL, WINDOWED)
        last_row = tl.minimum(row0 + ROWS, T * G) - 1
        lowest, _ = _limits(S - T + row0 // G, S, window, CAUSAL, WINDOWED)
        _, highest = _limits(S - T + last_row // G, S, window, CAUSAL, WINDOWED)
        dq = tl.zeros((ROWS, HEAD), tl.float32)
        for start in range(tl.maximum(lowest, 0) // KEYS * KEYS, highest, KEYS):
            n = start + tl.arange(0, KEYS)
            inside = (n < S)[:, None] & (h < H)[None, :]
            at = ((first_key + n) * K + head)[:, None] * H + h[None, :]
            k = tl.load(k_ptr + at, mask=inside, other=0.0)
            v = tl.load(v_ptr + at, mask=inside, other=0.0)
            scores = _dot(q, tl.trans(k)) * (scale * 1.4426950408889634) - shift[:, None]
            seen = (n[None, :] >= low[:, None]) & (n[None, :] < high[:, None])
            weights = tl.where(seen, tl.exp2(scores), 0.0)
            dscores = weights * (_dot(dout, tl.trans(v)) - drift[:, None])
            dq += _dot(dscores.to(k.dtype), k)
        tl.store(dq_ptr + row[:, None] * H + h[None, :], (dq * scale).to(dq_ptr.dtype.element_ty), mask=here)


def forward_ahead(
    dtype: str,
    H: int,
    *,
    rows: int = 2**14,
    G: int = 4,
    K: int = 8,
    causal: bool = True,
    windowed: bool = False,
    page: int = 0,
    splits: int = 1,
    masked: bool = False,
) -> Ahead:
    """The forward kernel as `forward` launches it for bf16 or fp16 inputs of this head width on a GPU."""
    tiles = forward_tiles(torch.bfloat16, H, rows, biased=masked)
    partial = "*fp32" if splits > 1 else f"*{dtype}"
    return Ahead(
        _forward,
        {
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{dtype}"),
            "out_ptr": partial,
            "lse_ptr": "*fp32",
            **dict.fromkeys(("query_starts_ptr", "key_starts_ptr", "table_ptr"), "*i64"),
            **({"keep_ptr": "*i1", "bias_ptr": f"*{dtype}"} if masked else {}),
            "scale": "fp32",
            **dict.fromkeys(("tokens", "window", "table_width"), "i32"),
        },
        {
            **({} if masked else {"keep_ptr": None, "bias_ptr": None}),
            "K": K, "G": G, "H": H, "HEAD": head_width(H), "PAGE": page or 1, "CAUSAL": causal, "WINDOWED": windowed,
            "PAGED": page > 0, "SPLITS": splits, "ROWS": tiles.rows, "KEYS": tiles.keys,
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        dot=tiles.rows >= 64,
    )  # fmt: skip


def backward_ahead(dtype: str, H: int, *, G: int = 4, K: int = 8) -> list[Ahead]:
    """Both backward kernels as `backward` launches them."""
    tiles = backward_tiles(torch.bfloat16, H)
    signature = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "dout_ptr"), f"*{dtype}"),
        **dict.fromkeys(("lse_ptr", "drift_ptr"), "*fp32"),
        **dict.fromkeys(("query_starts_ptr", "key_starts_ptr"), "*i64"),
        "scale": "fp32",
        "window": "i32",
    }
    constants = {
        "K": K, "G": G, "H": H, "HEAD": head_width(H), "CAUSAL": True, "WINDOWED": False,
        "ROWS": tiles.rows, "KEYS": tiles.keys,
    }  # fmt: skip
    launched = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "dot": True}
    return [
        Ahead(_backward_keys, {**signature, "dk_ptr": f"*{dtype}", "dv_ptr": f"*{dtype}"}, constants, **launched),
        Ahead(_backward_rows, {**signature, "dq_ptr": f"*{dtype}"}, constants, **launched),
    ]


def merge_ahead(dtype: str, H: int, splits: int) -> Ahead:
    """The merge of `splits` parts."""
    return Ahead(
        _merge,
        {"part_out_ptr": "*fp32", "part_lse_ptr": "*fp32", "out_ptr": f"*{dtype}", "lse_ptr": "*fp32", "rows": "i32"},
        {"H": H, "HEAD": head_width(H), "SPLITS": splits, "PARTS": triton.next_power_of_2(splits)},
    )


def enough_splits(programs: int, keys: int, device: torch.device) -> int:
    """Parts of the keys that give every multiprocessor two programs, each with at least 256 keys."""
    if INTERPRETED or device.type != "cuda":
        return min(2, max(keys // IN_ONE_TILE, 1))
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(min(triton.cdiv(wanted, max(programs, 1)), triton.cdiv(keys, 256), 64), 1)


AOT = [forward_ahead("fp16", 64, G=1), *backward_ahead("fp16", 64), merge_ahead("fp16", 64, 8)]
