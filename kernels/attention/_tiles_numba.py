"""Tiled softmax attention on CPU cores: one forward, one backward and one decode loop that all Numba twins of the family share.

Everything is a packed batch: sequence i owns queries query_starts[i] .. query_starts[i + 1] of q_UKGH and likewise its keys.
Forward and backward pack keys and values into panels as wide as a register tile (`llmlab.kernels.register_tile`), run both
products from registers and keep softmax's running maximum and sum per row; a row is one query head of one token, so that
the G heads that share keys share their panels. Decode reads keys and values where they lie, once, split over the cores.

Threads take (sequence, key head, block of rows) tasks from a shared counter, longest first within a head. They are plain
threads around compiled loops that hold no lock: compiling Numba's own parallel loops around these takes as long again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import get_num_threads, njit

from llmlab.kernels.bfloat16 import bits, put, widened, working_dtype
from llmlab.kernels.numba_math import EXACT, exp_down
from llmlab.kernels.register_tile import TILE_ROWS, TILE_VECTORS, add_tiles, fill_tile, lanes, make_dots, make_streams, take
from llmlab.kernels.softmax_row import softmax_tile

BLOCK_ROWS = 16 * TILE_ROWS
SOFTMAX_PANELS = 16 // TILE_VECTORS  # keys per step of the online softmax: its sums across lanes take as long as a product
DECODE_KEYS = 32  # scores of all heads, one key after the other as they lie in memory
STREAMS = 4  # rows of values read at a time: each result is loaded and stored once for them
CANCELS = "dout v' and sum(dout out) nearly cancel where few keys are seen, and are rounded apart (algorithm 4 of flash)"

Array = np.ndarray


def forward(
    q_UKGH: Array,
    k_WKH: Array,
    v_WKH: Array,
    query_starts_Z: Array,
    key_starts_Z: Array,
    *,
    causal: bool,
    window: int = 0,
    keep_W: Array | None = None,
    bias_KTS: Array | None = None,
) -> tuple[Array, Array]:
    """Return (out_UKGH, lse_UKG). `window` 0 is none; `keep_W` hides keys; `bias_KTS` adds to the scores of every sequence."""
    q, k, v, query_starts, key_starts, keep, bias = _prepared(
        q_UKGH, k_WKH, v_WKH, query_starts_Z, key_starts_Z, keep_W, bias_KTS
    )
    kind = working_dtype(q)
    out_UKGH, lse_UKG = np.zeros_like(q), np.full(q.shape[:3], -np.inf, kind)
    if not out_UKGH.size or not k.size:
        return out_UKGH, lse_UKG
    K, H = k.shape[1:]
    wide, Hp = panel_keys(kind), padded_width(H, kind)
    blocks_of = -(-np.diff(key_starts) // wide)
    block_starts = np.concatenate([[0], np.cumsum(blocks_of)])
    blocks = int(block_starts[-1])
    sequence_of = np.repeat(np.arange(len(blocks_of)), blocks_of)
    key_panels, value_panels = np.empty(K * blocks * H * wide, kind), np.empty(K * blocks * wide * Hp, kind)
    tasks = row_tasks(query_starts, K, q.shape[2])
    window = window or int(key_starts[-1]) + 1 + len(q)
    threads = worthwhile_threads(q.size * len(k) // max(len(key_starts) - 1, 1))
    together(threads, _pack, bits(k), bits(v), key_starts, block_starts, sequence_of, key_panels, value_panels, counter())
    together(
        threads, _forward, bits(q), key_panels, value_panels, query_starts, key_starts, block_starts, causal, window, keep,
        bias, tasks, counter(), bits(out_UKGH), lse_UKG,
    )  # fmt: skip
    return out_UKGH, lse_UKG


def backward(
    dout_UKGH: Array,
    dlse_UKG: Array | None,
    q_UKGH: Array,
    k_WKH: Array,
    v_WKH: Array,
    query_starts_Z: Array,
    key_starts_Z: Array,
    *,
    causal: bool,
    window: int = 0,
    keep_W: Array | None = None,
    bias_KTS: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Return (dq_UKGH, dk_WKH, dv_WKH, dbias_KTS); the last is empty without a bias."""
    q, k, v, query_starts, key_starts, keep, bias = _prepared(
        q_UKGH, k_WKH, v_WKH, query_starts_Z, key_starts_Z, keep_W, bias_KTS
    )
    out, lse = forward(q, k, v, query_starts, key_starts, causal=causal, window=window, keep_W=keep_W, bias_KTS=bias_KTS)
    dout = np.ascontiguousarray(dout_UKGH)
    dlse = np.zeros_like(lse) if dlse_UKG is None else np.ascontiguousarray(dlse_UKG)
    dq, dk, dv, dbias = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v), np.zeros_like(bias)
    if q.size and k.size:
        window = window or int(key_starts[-1]) + 1 + len(q)
        threads = worthwhile_threads(2 * q.size * len(k) // max(len(key_starts) - 1, 1))
        together(
            threads, _backward, dout, dlse, out, lse, q, k, v, query_starts, key_starts, causal, window, keep, bias,
            dq, dk, dv, dbias, counter(),
        )  # fmt: skip
    return dq, dk, dv, dbias


def decode(q_BKGH: Array, k_pages_PCKH: Array, v_pages_PCKH: Array, table_BM: Array, first_B: Array, end_B: Array) -> Array:
    """Attend one query per request to keys first .. end of its block table; return out_BKGH."""
    q, k, v = (np.ascontiguousarray(x) for x in (q_BKGH, k_pages_PCKH, v_pages_PCKH))
    out_BKGH = np.zeros_like(q)
    first, end = (np.ascontiguousarray(x, dtype=np.int64) for x in (first_B, end_B))
    lengths = np.maximum(end - first, 0)
    if not out_BKGH.size or not lengths.any():
        return out_BKGH
    threads = worthwhile_threads(int(lengths.sum()) * q[0].size)
    part = max(int(lengths.sum()) // (8 * threads) // DECODE_KEYS * DECODE_KEYS, 4 * DECODE_KEYS)
    parts_B = -(-lengths // part)
    slot_starts = np.concatenate([[0], np.cumsum(parts_B)])
    request = np.repeat(np.arange(len(q)), parts_B)
    start = first[request] + (np.arange(len(request)) - slot_starts[request]) * part
    tasks = np.stack([request, start, np.minimum(start + part, end[request])], axis=1)
    K, G, H = q.shape[1:]
    table, kind = np.ascontiguousarray(table_BM, dtype=np.int64), working_dtype(q)
    sharing = min(1 << (G - 1).bit_length(), MOST_SHARING)
    rows = K * (-(-G // sharing) * sharing)  # rows that only fill a group have queries of zeros
    partial = np.empty((len(tasks), rows * padded_width(H, kind)), kind)
    peaks, totals = np.empty((len(tasks), rows), kind), np.empty((len(tasks), rows), kind)
    keys, values = bits(k).reshape(-1), bits(v).reshape(-1)
    together(threads, _decode, bits(q), keys, values, k.shape[1], sharing, table, tasks, counter(), partial, peaks, totals)
    _merge(slot_starts, partial, peaks, totals, bits(out_BKGH))
    return out_BKGH


def worthwhile_threads(multiply_adds: int) -> int:
    """One thread for work that ends before a second one has started."""
    return get_num_threads() if multiply_adds > 500_000 else 1


def together(threads: int, loop: Callable[..., None], *arguments: Any) -> None:
    """Run a compiled loop on several threads at once; it divides its tasks among them by the counter it is given."""
    others = [_pool(os.getpid()).submit(loop, *arguments) for _ in range(threads - 1)]
    loop(*arguments)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # threads do not survive a fork, so each process has its own
    return ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="attention")


def counter() -> Array:
    """A task counter at zero, on a cache line of its own."""
    return np.zeros(16, dtype=np.int64)


def panel_keys(dtype: Any) -> int:
    """Keys of a panel: as many as a register tile has columns."""
    return lanes(dtype) * TILE_VECTORS


def padded_width(H: int, dtype: Any) -> int:
    """Head width rounded up to whole vectors."""
    return -(-H // lanes(dtype)) * lanes(dtype)


def even_starts(batch: int, tokens: int) -> Array:
    """Boundaries of a batch of equally long sequences."""
    return np.arange(batch + 1, dtype=np.int64) * tokens


def row_tasks(query_starts: Array, K: int, G: int) -> Array:
    """(sequence, key head, block of rows), the later and longer blocks of a head first."""
    tasks = []
    for i, rows in enumerate(np.diff(query_starts) * G):
        blocks = -(-int(rows) // BLOCK_ROWS)
        heads, order = np.divmod(np.arange(K * blocks), max(blocks, 1))
        tasks.append(np.stack([np.full(K * blocks, i), heads, blocks - 1 - order], axis=1))
    return np.concatenate(tasks) if tasks else np.zeros((0, 3), dtype=np.int64)


def _prepared(q, k, v, query_starts, key_starts, keep, bias):  # type: ignore[no-untyped-def]
    q, k, v = (np.ascontiguousarray(x) for x in (q, k, v))
    query_starts, key_starts = (np.ascontiguousarray(x, dtype=np.int64) for x in (query_starts, key_starts))
    keep = np.ones(0, dtype=np.bool_) if keep is None else np.ascontiguousarray(keep)
    bias = np.zeros((0, 0, 0), working_dtype(q)) if bias is None else np.ascontiguousarray(bias, dtype=working_dtype(q))
    return q, k, v, query_starts, key_starts, keep, bias


@njit(cache=True)
def _padded(width, lane):  # type: ignore[no-untyped-def]
    return (width + lane - 1) // lane * lane


@njit(cache=True, nogil=True, error_model="numpy")
def _pack(k, v, key_starts, block_starts, sequence_of, key_panels, value_panels, counter):  # type: ignore[no-untyped-def]
    """Keys of a block transposed, (H, wide); values as they are, (wide, padded H); zeros past the end."""
    K, H = k.shape[1], k.shape[2]
    lane = lanes(key_panels)
    wide, Hp = lane * TILE_VECTORS, _padded(H, lane)
    blocks = len(sequence_of)
    while True:
        task = take(counter)
        if task >= blocks:
            return
        i = sequence_of[task]
        base = key_starts[i] + (task - block_starts[i]) * wide
        n = min(wide, key_starts[i + 1] - base)
        for head in range(K):
            at = (head * blocks + task) * H * wide
            _transpose(k, base, head, n, key_panels[at : at + H * wide], wide)
            at = (head * blocks + task) * wide * Hp
            _copy_rows(v, base, head, n, value_panels[at : at + wide * Hp], wide, Hp)


@njit(cache=True, error_model="numpy")
def _transpose(x, base, head, n, panel, wide):  # type: ignore[no-untyped-def]
    H = x.shape[2]
    if n < wide:
        panel[: H * wide] = 0
    for j in range(n):
        row = x[base + j, head]
        for h in range(H):
            panel[h * wide + j] = widened(row[h])


@njit(cache=True, error_model="numpy")
def _copy_rows(x, base, head, n, panel, wide, Hp):  # type: ignore[no-untyped-def]
    H = x.shape[2]
    if n < wide or Hp > H:
        panel[: wide * Hp] = 0
    for j in range(n):
        row = x[base + j, head]
        for h in range(H):
            panel[j * Hp + h] = widened(row[h])


@njit(inline="always")
def _panels(keys, wide):  # type: ignore[no-untyped-def]
    return (keys + wide - 1) // wide


@njit(cache=True, error_model="numpy")
def _limits(r0, rows, T, S, G, causal, window, low, high):  # type: ignore[no-untyped-def]
    """Keys low .. high each row of a block sees; none for the rows that only fill the last tile."""
    for i in range(BLOCK_ROWS):
        low[i], high[i] = 0, 0
        if i < rows:
            position = S - T + (r0 + i) // G
            high[i] = S
            if causal:
                high[i] = max(min(position + 1, S), 0)
                low[i] = min(max(position - window + 1, 0), high[i])


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _add_masks(row, base, n, keep, keep_at, bias, head, t):  # type: ignore[no-untyped-def]
    if bias.size:
        added = bias[head, t, base : base + n]
        for j in range(n):
            row[j] += added[j]
    if keep.size:
        for j in range(n):
            row[j] = row[j] if keep[keep_at + base + j] else -np.inf


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _exp_row(row, shift):  # type: ignore[no-untyped-def]
    for j in range(row.size):
        row[j] = exp_down(row[j] - shift)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT)
def _forward(  # type: ignore[no-untyped-def]
    q, key_panels, value_panels, query_starts, key_starts, block_starts, causal, window, keep, bias, tasks, counter, out, lse
):
    G, H = q.shape[2], q.shape[3]
    kind = key_panels.dtype
    scale, one, zero = kind.type(1 / np.sqrt(H)), kind.type(1), kind.type(0)
    lane = lanes(key_panels)
    wide, Hp = lane * TILE_VECTORS, _padded(H, lane)
    blocks = block_starts[len(block_starts) - 1]
    rows_q = np.zeros(BLOCK_ROWS * H, dtype=kind)
    keys = SOFTMAX_PANELS * wide
    scores = np.zeros(TILE_ROWS * keys, dtype=kind)
    result = np.zeros(BLOCK_ROWS * Hp, dtype=kind)
    peak, total, shrink = np.zeros(BLOCK_ROWS, dtype=kind), np.zeros(BLOCK_ROWS, dtype=kind), np.zeros(BLOCK_ROWS, dtype=kind)
    low, high = np.zeros(BLOCK_ROWS, dtype=np.int64), np.zeros(BLOCK_ROWS, dtype=np.int64)
    while True:
        task = take(counter)
        if task >= len(tasks):
            return
        sequence, head, r0 = tasks[task, 0], tasks[task, 1], tasks[task, 2] * BLOCK_ROWS
        first_query, first_key = query_starts[sequence], key_starts[sequence]
        T, S = query_starts[sequence + 1] - first_query, key_starts[sequence + 1] - first_key
        rows = min(BLOCK_ROWS, T * G - r0)
        tiled = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
        _limits(r0, rows, T, S, G, causal, window, low, high)
        for i in range(tiled):
            if i < rows:
                row = q[first_query + (r0 + i) // G, head, (r0 + i) % G]
                for h in range(H):
                    rows_q[i * H + h] = widened(row[h]) * scale
            else:
                rows_q[i * H : (i + 1) * H] = 0
        result[: tiled * Hp] = 0
        peak[:], total[:] = -np.inf, 0
        for first_panel in range(low[0] // wide, _panels(high[rows - 1], wide), SOFTMAX_PANELS):
            for i0 in range(0, tiled, TILE_ROWS):
                last = min(i0 + TILE_ROWS, rows) - 1
                from_panel = max(first_panel, low[i0] // wide)
                panels = min(first_panel + SOFTMAX_PANELS, _panels(high[last], wide)) - from_panel
                if panels <= 0:
                    continue
                base, n = from_panel * wide, panels * wide
                panel = head * blocks + block_starts[sequence] + from_panel
                for p in range(panels):
                    fill_tile(rows_q, i0 * H, H, 1, key_panels, (panel + p) * H * wide, wide, scores, p * wide, keys, H)
                for i in range(i0, i0 + TILE_ROWS):
                    row = scores[(i - i0) * keys : (i - i0) * keys + n]
                    if bias.size or keep.size:
                        t = min((r0 + i) // G, T - 1)
                        _add_masks(row, base, min(n, S - base), keep, first_key, bias, head, t)
                    if low[i] > base or high[i] < base + n:
                        row[: max(min(low[i] - base, n), 0)] = -np.inf
                        row[max(high[i] - base, 0) :] = -np.inf
                softmax_tile(scores, 0, keys, n, peak, total, shrink, i0)
                at, depth = panel * wide * Hp, min(n, high[last] - base)
                add_tiles(scores, 0, keys, 1, value_panels, at, Hp, result, i0 * Hp, Hp, depth, Hp, shrink, i0)
        for i in range(rows):
            u, g = first_query + (r0 + i) // G, (r0 + i) % G
            inverse = one / total[i] if total[i] != 0 else zero
            row = result[i * Hp : i * Hp + H]
            target = out[u, head, g]
            for h in range(H):
                put(target, h, row[h] * inverse)
            lse[u, head, g] = peak[i] + np.log(total[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _backward(  # type: ignore[no-untyped-def]
    dout, dlse, out, lse, q, k, v, query_starts, key_starts, causal, window, keep, bias, dq, dk, dv, dbias, counter
):
    """One (sequence, key head) at a time, or one head over all sequences where a bias sums over them."""
    K = q.shape[1]
    sequences = len(query_starts) - 1
    while True:
        task = take(counter)
        if bias.size:
            if task >= K:
                return
            for sequence in range(sequences):
                _head_backward(
                    sequence, task, dout, dlse, out, lse, q, k, v, query_starts, key_starts, causal, window, keep, bias,
                    dq, dk, dv, dbias,
                )  # fmt: skip
        else:
            if task >= K * sequences:
                return
            _head_backward(
                task // K, task % K, dout, dlse, out, lse, q, k, v, query_starts, key_starts, causal, window, keep, bias,
                dq, dk, dv, dbias,
            )  # fmt: skip


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _head_backward(  # type: ignore[no-untyped-def]
    sequence, head, dout, dlse, out, lse, q, k, v, query_starts, key_starts, causal, window, keep, bias, dq, dk, dv, dbias
):
    G, H = q.shape[2], q.shape[3]
    dtype = q.dtype.type
    zero, scale = dtype(0), dtype(1 / np.sqrt(H))
    lane = lanes(q)
    wide, Hp = lane * TILE_VECTORS, _padded(H, lane)
    first_query, first_key = query_starts[sequence], key_starts[sequence]
    T, S = query_starts[sequence + 1] - first_query, key_starts[sequence + 1] - first_key
    if T == 0 or S == 0:
        return
    stride = wide + _padded(TILE_ROWS, lane)  # columns past `wide` stay zero: the transposed tiles read them
    wide_rows = (wide + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    row_blocks = (T * G + BLOCK_ROWS - 1) // BLOCK_ROWS
    all_rows = row_blocks * BLOCK_ROWS * Hp
    all_q, all_dout, all_dq = np.zeros(all_rows, q.dtype), np.zeros(all_rows, q.dtype), np.zeros(all_rows, q.dtype)
    drift = np.empty(T * G, dtype=q.dtype)
    for r in range(T * G):
        u, g = first_query + r // G, r % G
        query, gradient, attended = q[u, head, g], dout[u, head, g], out[u, head, g]
        along = zero  # summed in the order of the tiles, so that the gradient of a row with one key is exactly zero
        for h in range(H):
            all_q[r * Hp + h] = query[h] * scale
            all_dout[r * Hp + h] = gradient[h]
            along += gradient[h] * attended[h]
        drift[r] = along - dlse[u, head, g]
    keys_t, values_t = np.empty(H * wide, dtype=q.dtype), np.empty(H * wide, dtype=q.dtype)
    keys = np.empty(wide * Hp, dtype=q.dtype)
    block_dk, block_dv = np.empty(wide_rows * Hp, dtype=q.dtype), np.empty(wide_rows * Hp, dtype=q.dtype)
    weights, dscores = np.zeros(BLOCK_ROWS * stride, dtype=q.dtype), np.zeros(BLOCK_ROWS * stride, dtype=q.dtype)
    ones = np.ones(TILE_ROWS, dtype=q.dtype)
    low, high = np.zeros(BLOCK_ROWS, dtype=np.int64), np.zeros(BLOCK_ROWS, dtype=np.int64)
    for base in range(0, S, wide):
        n = min(wide, S - base)
        _transpose(k, first_key + base, head, n, keys_t, wide)
        _transpose(v, first_key + base, head, n, values_t, wide)
        _copy_rows(k, first_key + base, head, n, keys, wide, Hp)
        block_dk[:], block_dv[:] = 0, 0
        for r0 in range(0, T * G, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, T * G - r0)
            _limits(r0, rows, T, S, G, causal, window, low, high)
            if base >= high[rows - 1] or base + wide <= low[0]:
                continue
            for i0 in range(0, BLOCK_ROWS, TILE_ROWS):
                last = min(i0 + TILE_ROWS, rows) - 1
                if i0 >= rows or base >= high[last] or base + wide <= low[i0]:
                    for i in range(i0, i0 + TILE_ROWS):
                        weights[i * stride : i * stride + wide] = 0
                        dscores[i * stride : i * stride + wide] = 0
                    continue
                fill_tile(all_q, (r0 + i0) * Hp, Hp, 1, keys_t, 0, wide, weights, i0 * stride, stride, H)
                fill_tile(all_dout, (r0 + i0) * Hp, Hp, 1, values_t, 0, wide, dscores, i0 * stride, stride, H)
                for i in range(i0, i0 + TILE_ROWS):
                    weight = weights[i * stride : i * stride + wide]
                    dscore = dscores[i * stride : i * stride + wide]
                    u, g = first_query + min((r0 + i) // G, T - 1), (r0 + i) % G
                    if bias.size or keep.size:
                        _add_masks(weight, base, n, keep, first_key, bias, head, u - first_query)
                    row_lse, row_drift = lse[u, head, g], drift[min(r0 + i, T * G - 1)]
                    _exp_row(weight, row_lse if row_lse != -np.inf else zero)
                    if low[i] > base or high[i] < base + wide:
                        weight[: max(min(low[i] - base, wide), 0)] = 0
                        weight[max(high[i] - base, 0) :] = 0
                    for j in range(wide):
                        dscore[j] = weight[j] * (dscore[j] - row_drift)
                    if bias.size and i < rows:
                        added = dbias[head, u - first_query, base : base + n]
                        for j in range(n):
                            added[j] += dscore[j]
            for j in range(0, wide, TILE_ROWS):
                add_tiles(weights, j, 1, stride, all_dout, r0 * Hp, Hp, block_dv, j * Hp, Hp, rows, Hp, ones, 0)
                add_tiles(dscores, j, 1, stride, all_q, r0 * Hp, Hp, block_dk, j * Hp, Hp, rows, Hp, ones, 0)
            for i0 in range(0, rows, TILE_ROWS):
                if base < high[min(i0 + TILE_ROWS, rows) - 1] and base + wide > low[i0]:
                    add_tiles(dscores, i0 * stride, stride, 1, keys, 0, Hp, all_dq, (r0 + i0) * Hp, Hp, n, Hp, ones, 0)
        for j in range(n):
            to_dk, to_dv = dk[first_key + base + j, head], dv[first_key + base + j, head]
            for h in range(H):
                to_dk[h] = block_dk[j * Hp + h]
                to_dv[h] = block_dv[j * Hp + h]
    for r in range(T * G):
        to_dq = dq[first_query + r // G, head, r % G]
        for h in range(H):
            to_dq[h] = all_dq[r * Hp + h] * scale


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _merge(slot_starts, partial, peaks, totals, out):  # type: ignore[no-untyped-def]
    """Weigh the parts of each request by their share of the whole sum of exponentials."""
    K, G, H = out.shape[1], out.shape[2], out.shape[3]
    rows = peaks.shape[1]
    Hp = partial.shape[1] // rows
    zero, lowest = partial.dtype.type(0), partial.dtype.type(-np.inf)
    summed = np.empty(H, dtype=partial.dtype)
    for b in range(len(out)):
        start, end = slot_starts[b], slot_starts[b + 1]
        for head in range(K):
            for g in range(G):
                row = head * (rows // K) + g
                peak, total = lowest, zero
                for slot in range(start, end):
                    peak = peaks[slot, row] if not peaks[slot, row] <= peak else peak
                summed[:] = 0
                for slot in range(start, end):
                    share = exp_down(peaks[slot, row] - peak) if peak != -np.inf else zero
                    total += share * totals[slot, row]
                    for h in range(H):
                        summed[h] += share * partial[slot, row * Hp + h]
                if total != 0:
                    target = out[b, head, g]
                    for h in range(H):
                        put(target, h, summed[h] / total)


MOST_SHARING = 8
_dots1, _dots2, _dots4, _dots8 = (make_dots(sharing) for sharing in (1, 2, 4, 8))
_add1, _add2, _add4, _add8 = (make_streams(sharing, 1) for sharing in (1, 2, 4, 8))
_adds1, _adds2, _adds4, _adds8 = (make_streams(sharing, STREAMS) for sharing in (1, 2, 4, 8))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT)
def _decode(  # type: ignore[no-untyped-def]
    q, k, v, C, sharing, table, tasks, counter, partial, peaks, totals
):
    """Keys and values pass by once, in the order of memory; all heads of a key are scored before the next key is read."""
    K, G, H = q.shape[1], q.shape[2], q.shape[3]
    kind, lane = partial.dtype, lanes(partial)
    rows = peaks.shape[1]
    Hp, wide_rows = _padded(H, lane), _padded(rows, lane)
    per_head, per_row = rows // K, min(sharing, lane)
    scale = kind.type(1 / np.sqrt(H))
    rows_q = np.zeros(wide_rows * Hp, dtype=kind)
    scores = np.zeros(DECODE_KEYS * wide_rows, dtype=kind)
    gathered = np.zeros(STREAMS * K * Hp, dtype=kind)
    shrink = np.ones(wide_rows, dtype=kind)
    heads_at = np.empty(wide_rows // per_row, dtype=np.int64)  # of the rows that share; the last again for fillers
    for i in range(len(heads_at)):
        heads_at[i] = min(i * per_row // per_head, K - 1) * Hp
    while True:
        task = take(counter)
        if task >= len(tasks):
            return
        b, start, end = tasks[task, 0], tasks[task, 1], tasks[task, 2]
        pages, result, peak, total = table[b], partial[task], peaks[task], totals[task]
        result[:], peak[:], total[:] = 0, -np.inf, 0
        for head in range(K):
            for g in range(G):
                query, to = q[b, head, g], (head * per_head + g) * Hp
                for h in range(H):
                    rows_q[to + h] = widened(query[h]) * scale
        for base in range(start, end, DECODE_KEYS):
            n = min(DECODE_KEYS, end - base)
            for j in range(n):
                at = (pages[(base + j) // C] * C + (base + j) % C) * K * H
                if Hp == H:
                    _score(rows_q, k, at, K * H, heads_at, sharing, Hp, scores, j * wide_rows, wide_rows, lane)
                else:
                    _gather(k, at, K, H, gathered, 0, Hp)
                    _score(rows_q, gathered, 0, 0, heads_at, sharing, Hp, scores, j * wide_rows, wide_rows, lane)
            _softmax_columns(scores, n, wide_rows, peak, total, shrink)
            for row in range(rows):
                factor = shrink[row]
                for h in range(row * Hp, (row + 1) * Hp):
                    result[h] *= factor
            j = 0
            while j < n:
                s = base + j
                at, streams = (pages[s // C] * C + s % C) * K * H, STREAMS if min(n - j, C - s % C) >= STREAMS else 1
                if Hp == H:
                    _add(scores, j * wide_rows, wide_rows, v, at, K, H, result, per_head, sharing, streams)
                else:
                    for i in range(streams):
                        _gather(v, at + i * K * H, K, H, gathered, i * K * Hp, Hp)
                    _add(scores, j * wide_rows, wide_rows, gathered, 0, K, Hp, result, per_head, sharing, streams)
                j += streams


@njit(inline="always")
def _score(rows_q, k, at, ahead, heads_at, sharing, Hp, scores, scores_at, rows, lane):  # type: ignore[no-untyped-def]
    """Products of one key of every head with the queries that share it, a vector of rows at a time."""
    shared = lane // min(sharing, lane)
    for r in range(0, rows, lane):
        first = r // lane * shared
        if sharing == 1:
            _dots1(rows_q, r * Hp, Hp, k, at, heads_at, first, Hp, 2 * ahead, scores, scores_at + r)
        elif sharing == 2:
            _dots2(rows_q, r * Hp, Hp, k, at, heads_at, first, Hp, 2 * ahead, scores, scores_at + r)
        elif sharing == 4:
            _dots4(rows_q, r * Hp, Hp, k, at, heads_at, first, Hp, 2 * ahead, scores, scores_at + r)
        else:
            _dots8(rows_q, r * Hp, Hp, k, at, heads_at, first, Hp, 2 * ahead, scores, scores_at + r)


@njit(inline="always")
def _add(scores, scores_at, stride, v, at, K, Hp, result, per_head, sharing, streams):  # type: ignore[no-untyped-def]
    """result += weights times the values of `streams` keys, head after head."""
    width = K * Hp
    ahead = streams * width
    for head in range(K):
        b = at + head * Hp
        for row in range(head * per_head, (head + 1) * per_head, sharing):
            a, c = scores_at + row, row * Hp
            if streams == 1:
                if sharing == 1:
                    _add1(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
                elif sharing == 2:
                    _add2(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
                elif sharing == 4:
                    _add4(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
                else:
                    _add8(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
            elif sharing == 1:
                _adds1(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
            elif sharing == 2:
                _adds2(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
            elif sharing == 4:
                _adds4(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)
            else:
                _adds8(scores, a, stride, v, b, width, Hp, ahead, result, c, Hp)


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _softmax_columns(scores, n, stride, peak, total, shrink):  # type: ignore[no-untyped-def]
    """One step of the online softmax of every column over n rows; a NaN leaves the peak and makes the total NaN."""
    columns = len(peak)
    top = peak.copy()
    for j in range(n):
        row = scores[j * stride : j * stride + columns]
        for i in range(columns):
            top[i] = row[i] if row[i] > top[i] else top[i]
    for i in range(columns):
        shift = top[i] if top[i] != -np.inf else peak.dtype.type(0)
        shrink[i] = exp_down(peak[i] - shift)
        peak[i] = top[i]
        total[i] *= shrink[i]
        top[i] = shift
    for j in range(n):
        row = scores[j * stride : j * stride + columns]
        for i in range(columns):
            row[i] = exp_down(row[i] - top[i])
            total[i] += row[i]


@njit(cache=True, error_model="numpy")
def _gather(x, at, K, H, target, target_at, Hp):  # type: ignore[no-untyped-def]
    """All heads of one key, each padded to whole vectors."""
    for head in range(K):
        for h in range(H):
            target[target_at + head * Hp + h] = widened(x[at + head * H + h])
