"""States that decay and are corrected, on CPU cores: linear attention, Mamba-2 and the gated delta rule share these loops.

A task is a few heads of one sequence that share queries and keys. It walks over chunks of 64 positions: masked products of
register tiles within a chunk, and a state that stays in the core's cache between them. A few positions at a time (decoding)
are walked one by one instead, which reads and writes the state once.

Arrays that a member of the family lacks have no elements:

    logs   log of the decay          gain   factor of the values (Mamba-2's step size)
    skip   share of the values that goes straight to the result
    total  sum of the keys; results are divided by their weight (linear attention)
    beta   share of what a key holds that is replaced (gated delta rule)
"""

from __future__ import annotations

import numpy as np
from numba import njit

from llmlab.kernels.attention._tiles_numba import counter, together, worthwhile_threads
from llmlab.kernels.numba_math import EXACT, exp, exp_down, row_dot, row_sum
from llmlab.kernels.register_tile import TILE_ROWS, add_tiles, lanes, take

CHUNK = 64
FEW = 8
HEADS_OF_A_TASK = 8

Array = np.ndarray


def walk(
    q_BTKM: Array,
    k_BTKM: Array,
    v_BTKGH: Array,
    state_BKGMH: Array,
    *,
    logs_BTKG: Array | None = None,
    gain_BTKG: Array | None = None,
    skip_KG: Array | None = None,
    total_BKM: Array | None = None,
    beta_BTKG: Array | None = None,
    feature: bool = False,
) -> tuple[Array, Array, Array]:
    """Return (out_BTKGH, state_BKGMH, total_BKM) after the last position; `feature` maps queries and keys by elu + 1."""
    kind = v_BTKGH.dtype
    q, k, v, state = (np.ascontiguousarray(x) for x in (q_BTKM, k_BTKM, v_BTKGH, state_BKGMH))
    logs, gain, beta = (_given(x, (0, 0, 0, 0), kind) for x in (logs_BTKG, gain_BTKG, beta_BTKG))
    skip, total = _given(skip_KG, (0, 0), kind), _given(total_BKM, (0, 0, 0), kind)
    out, after, total_after = np.empty_like(v), state.copy(), total.copy()
    B, T, K, G, H = v.shape
    if not v.size or not state.size:
        return out, after, total_after
    threads = worthwhile_threads(B * T * K * G * H * q.shape[3])
    group = 1 if T <= FEW else min(max(B * K * G // (4 * threads), 1), HEADS_OF_A_TASK, G)
    loop = _few_positions if T <= FEW else _chunks
    together(threads, loop, q, k, v, logs, gain, skip, beta, feature, group, counter(), out, after, total_after)
    return out, after, total_after


def _given(array: Array | None, empty: tuple[int, ...], kind: np.dtype) -> Array:
    return np.zeros(empty, kind) if array is None else np.ascontiguousarray(array)


@njit(cache=True)
def _whole_tiles(rows):  # type: ignore[no-untyped-def]
    return (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


@njit(cache=True)
def _whole_vectors(width, lane):  # type: ignore[no-untyped-def]
    return (width + lane - 1) // lane * lane


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def mapped(row, width, feature, target, at):  # type: ignore[no-untyped-def]
    """Copy a query or key, through elu(x) + 1 if asked."""
    one = row.dtype.type(1)
    if feature:
        for m in range(width):
            target[at + m] = row[m] + one if row[m] > 0 else exp_down(row[m])
    else:
        for m in range(width):
            target[at + m] = row[m]


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def pack(x, b, start, n, head, feature, rows, columns):  # type: ignore[no-untyped-def]
    """Queries or keys of a chunk as rows (position, M), and transposed as `columns` (M, CHUNK) if that has elements."""
    M = x.shape[3]
    for t in range(n):
        mapped(x[b, start + t, head], M, feature, rows, t * M)
    rows[n * M : _whole_tiles(n) * M] = 0
    if columns.size:
        for t in range(n):
            row = rows[t * M : (t + 1) * M]
            for m in range(M):
                columns[m * CHUNK + t] = row[m]
        for m in range(M):
            columns[m * CHUNK + n : (m + 1) * CHUNK] = 0


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def products(rows, columns, n, M, scores, ones):  # type: ignore[no-untyped-def]
    """scores[t, s] = rows_t columns_s for s <= t, at least; (position, CHUNK)."""
    lane = lanes(rows)
    for i0 in range(0, n, TILE_ROWS):
        width = min(_whole_vectors(i0 + TILE_ROWS, lane), CHUNK)
        for i in range(i0, i0 + TILE_ROWS):
            scores[i * CHUNK : i * CHUNK + width] = 0
        add_tiles(rows, i0 * M, M, 1, columns, 0, CHUNK, scores, i0 * CHUNK, CHUNK, M, width, ones, 0)


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def decays(logs, b, start, n, head, g, decay, since):  # type: ignore[no-untyped-def]
    """Decay at every position of a chunk, and since its start."""
    product = decay.dtype.type(1)
    for t in range(n):
        if logs.size:
            decay[t] = exp(logs[b, start + t, head, g])
            product *= decay[t]
        else:
            decay[t] = product
        since[t] = product


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def weigh(scores, decay, n, strict, factor, weights, between):  # type: ignore[no-untyped-def]
    """weights[t, s] = factor_t scores[t, s] times the decay from s to t, 0 for later s; `between` ends as that to the end."""
    one, zero = scores.dtype.type(1), scores.dtype.type(0)
    for t in range(n):
        if t:
            earlier = between[:t]
            by = decay[t]
            for s in range(t):
                earlier[s] *= by
        between[t] = one
        row, weighed = scores[t * CHUNK : t * CHUNK + t + 1], weights[t * CHUNK : t * CHUNK + t + 1]
        by = factor[t]
        for s in range(t + 1):
            weighed[s] = by * row[s] * between[s]
        if strict:
            weighed[t] = zero
        weights[t * CHUNK + t + 1 : t * CHUNK + min(_whole_tiles(t + 1), CHUNK)] = 0
    for t in range(n, _whole_tiles(n)):
        weights[t * CHUNK : (t + 1) * CHUNK] = 0


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def _solve(below, n, u, Hp, ones):  # type: ignore[no-untyped-def]
    """Solve u_t = u_t + sum of below[t, s] u_s over s < t in place, a tile of rows after the other."""
    for i0 in range(0, n, TILE_ROWS):
        if i0:
            add_tiles(below, i0 * CHUNK, CHUNK, 1, u, 0, Hp, u, i0 * Hp, Hp, i0, Hp, ones, 0)
        for t in range(i0 + 1, min(i0 + TILE_ROWS, n)):
            row = u[t * Hp : (t + 1) * Hp]
            for s in range(i0, t):
                factor, other = below[t * CHUNK + s], u[s * Hp : (s + 1) * Hp]
                for h in range(Hp):
                    row[h] += factor * other[h]


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def read_state(rows, n, M, state, at, result, Hp, ones):  # type: ignore[no-untyped-def]
    """result = rows state, for a chunk's rows and one head's state."""
    for i0 in range(0, n, TILE_ROWS):
        result[i0 * Hp : (i0 + TILE_ROWS) * Hp] = 0
        add_tiles(rows, i0 * M, M, 1, state, at, Hp, result, i0 * Hp, Hp, M, Hp, ones, 0)


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def load_state(after, b, head, g, states, at, Hp):  # type: ignore[no-untyped-def]
    M, H = after.shape[3], after.shape[4]
    for m in range(M):
        row = after[b, head, g, m]
        for h in range(H):
            states[at + m * Hp + h] = row[h]


@njit(cache=True, error_model="numpy", fastmath=EXACT)
def store_state(states, at, Hp, after, b, head, g):  # type: ignore[no-untyped-def]
    M, H = after.shape[3], after.shape[4]
    for m in range(M):
        row = after[b, head, g, m]
        for h in range(H):
            row[h] = states[at + m * Hp + h]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT)
def _chunks(q, k, v, logs, gain, skip, beta, feature, group, counter, out, after, total):  # type: ignore[no-untyped-def]
    B, T, K, G, H = v.shape
    M = q.shape[3]
    dtype = v.dtype
    Hp, all_rows, state_rows = _whole_vectors(H, lanes(v)), _whole_tiles(CHUNK), _whole_tiles(M)
    queries, keys = np.zeros(all_rows * M, dtype), np.zeros(all_rows * M, dtype)
    columns = np.zeros(state_rows * CHUNK, dtype)
    scores, overlaps = np.zeros(all_rows * CHUNK, dtype), np.zeros(all_rows * CHUNK, dtype)
    weights, below = np.zeros(all_rows * CHUNK, dtype), np.zeros(all_rows * CHUNK, dtype)
    values, left, result = np.zeros(all_rows * Hp, dtype), np.zeros(all_rows * Hp, dtype), np.zeros(all_rows * Hp, dtype)
    states = np.zeros(group * state_rows * Hp, dtype)
    decay, since, between = np.ones(all_rows, dtype), np.ones(all_rows, dtype), np.ones(all_rows, dtype)
    ones, carry, factor = np.ones(all_rows, dtype), np.ones(TILE_ROWS, dtype), np.ones(all_rows, dtype)
    nothing = np.zeros(0, dtype)
    parts = (G + group - 1) // group
    while True:
        task = take(counter)
        if task >= B * K * parts:
            return
        b, head, g0 = task // (K * parts), task // parts % K, task % parts * group
        heads = min(group, G - g0)
        for i in range(heads):
            load_state(after, b, head, g0 + i, states, i * state_rows * Hp, Hp)
        for start in range(0, T, CHUNK):
            n = min(CHUNK, T - start)
            pack(q, b, start, n, head, feature, queries, nothing)
            pack(k, b, start, n, head, feature, keys, columns)
            products(queries, columns, n, M, scores, ones)
            if beta.size:
                products(keys, columns, n, M, overlaps, ones)
            for i in range(heads):
                g, at = g0 + i, i * state_rows * Hp
                decays(logs, b, start, n, head, g, decay, since)
                if beta.size:
                    read_state(keys, n, M, states, at, values, Hp, ones)
                    for t in range(n):
                        factor[t] = -beta[b, start + t, head, g]
                        row, value = values[t * Hp : t * Hp + H], v[b, start + t, head, g]
                        for h in range(H):
                            row[h] = factor[t] * (since[t] * row[h] - value[h])
                    weigh(overlaps, decay, n, True, factor, below, between)
                    _solve(below, n, values, Hp, ones)
                else:
                    for t in range(n):
                        row, value = values[t * Hp : t * Hp + H], v[b, start + t, head, g]
                        by = gain[b, start + t, head, g] if gain.size else ones[0]
                        for h in range(H):
                            row[h] = by * value[h]
                weigh(scores, decay, n, False, ones, weights, between)
                read_state(queries, n, M, states, at, result, Hp, ones)
                for i0 in range(0, n, TILE_ROWS):
                    depth = min(i0 + TILE_ROWS, n)
                    add_tiles(weights, i0 * CHUNK, CHUNK, 1, values, 0, Hp, result, i0 * Hp, Hp, depth, Hp, since, i0)
                for t in range(n):
                    by = ones[0]
                    if total.size:
                        weight = row_sum(scores[t * CHUNK : t * CHUNK + t + 1])
                        by = by / (weight + row_dot(queries[t * M : (t + 1) * M], total[b, head]))
                    row, target = result[t * Hp : t * Hp + H], out[b, start + t, head, g]
                    for h in range(H):
                        target[h] = row[h] * by
                    if skip.size:
                        share, value = skip[head, g], v[b, start + t, head, g]
                        for h in range(H):
                            target[h] += share * value[h]
                    by, to, row = between[t], left[t * Hp : (t + 1) * Hp], values[t * Hp : (t + 1) * Hp]
                    for h in range(Hp):
                        to[h] = by * row[h]
                carry[:] = since[n - 1]
                for m0 in range(0, M, TILE_ROWS):
                    add_tiles(columns, m0 * CHUNK, CHUNK, 1, left, 0, Hp, states, at + m0 * Hp, Hp, n, Hp, carry, 0)
            if total.size:
                for m in range(M):
                    total[b, head, m] += row_sum(columns[m * CHUNK : m * CHUNK + n])
        for i in range(heads):
            store_state(states, i * state_rows * Hp, Hp, after, b, head, g0 + i)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT)
def _few_positions(q, k, v, logs, gain, skip, beta, feature, group, counter, out, after, total):  # type: ignore[no-untyped-def]
    B, T, K, G, H = v.shape
    M = q.shape[3]
    one = v.dtype.type(1)
    query, key = np.empty(M, v.dtype), np.empty(M, v.dtype)
    written, read = np.empty(H, v.dtype), np.empty(H, v.dtype)
    while True:
        task = take(counter)
        if task >= B * K * G:
            return
        b, head, g = task // (K * G), task // G % K, task % G
        for t in range(T):
            mapped(q[b, t, head], M, feature, query, 0)
            mapped(k[b, t, head], M, feature, key, 0)
            value = v[b, t, head, g]
            kept = exp(logs[b, t, head, g]) if logs.size else one
            if beta.size:
                written[:] = 0
                for m in range(M):
                    row, by = after[b, head, g, m], kept * key[m]
                    for h in range(H):
                        written[h] += by * row[h]
                for h in range(H):
                    written[h] = beta[b, t, head, g] * (value[h] - written[h])
            else:
                by = gain[b, t, head, g] if gain.size else one
                for h in range(H):
                    written[h] = by * value[h]
            read[:] = 0
            for m in range(M):
                row, by_key, by_query = after[b, head, g, m], key[m], query[m]
                for h in range(H):
                    row[h] = kept * row[h] + by_key * written[h]
                    read[h] += by_query * row[h]
            by = one
            if total.size:
                for m in range(M):
                    total[b, head, m] += key[m]
                by = one / row_dot(query, total[b, head])
            target, share = out[b, t, head, g], skip[head, g] if skip.size else one * 0
            for h in range(H):
                target[h] = by * read[h]
            if skip.size:
                for h in range(H):
                    target[h] += share * value[h]
