"""Native sparse attention: compressed, selected and window branches (Yuan et al. 2025, arXiv:2502.11089, section 3).

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width,
C tokens of a compressed block, M compressed tokens, Z branches (3), X selected blocks of a query.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import (
    EVERY_PAIR,
    attend,
    attend_backward,
    attention_weights,
    causal_pairs,
    require_keys,
    window_pairs,
)
from llmlab.reference.attention.sliding_window import sliding_window, sliding_window_backward
from llmlab.reference.op import Cost, Dims, Op

STRIDE, BLOCK, SELECTED, WINDOW = 16, 64, 16, 512  # section 4.1, with compressed blocks of C = 32 tokens


def native_sparse(
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    pool_k_C: np.ndarray,
    pool_v_C: np.ndarray,
    gates_BTKGZ: np.ndarray,
    *,
    stride: int = STRIDE,
    block: int = BLOCK,
    selected: int = SELECTED,
    window: int = WINDOW,
) -> np.ndarray:
    """Attend to summaries of all keys, to the blocks whose summaries score best and to the last keys; return out_BTKGH.

        out = g_cmp Attn(q, K_cmp, V_cmp) + g_slc Attn(q, K_slc, V_slc) + g_win Attn(q, K_win, V_win)      (eq. 5)

    Query t sits at position p = S - T + t. Compressed token i stands for the C keys from i stride on and is seen once all of
    them are (eq. 7); its summary is a learned weight per place in the block, the mean where all weights are 1 / C (the paper
    leaves the map open: "a learnable MLP with intra-block position encoding"). `select_blocks` says which blocks of `block`
    keys are attended in full, up to p. The gates, sigmoids of the layer's input in order (cmp, slc, win), are given. A query
    before the first whole compressed block gets zeros from that branch. Selection has no gradient of its own. A NaN or infinity
    in a gate stays in its row; elsewhere it may also change what is selected.

    Raises:
        ValueError: more queries than keys, a window below 1, a stride that does not divide C and `block`, or fewer than the 3
            selected blocks that are always on.

    >>> q = np.zeros((1, 1, 1, 1, 1)); values = np.array([1.0, 3.0, 5.0, 7.0]).reshape(1, 4, 1, 1); half = np.full(2, 0.5)
    >>> sizes = {"stride": 2, "block": 2, "selected": 3, "window": 1}
    >>> [native_sparse(q, values, values, half, half, g.reshape(1, 1, 1, 1, 3), **sizes).item() for g in np.eye(3)]
    [4.0, 4.0, 7.0]
    """
    require_sizes(q_BTKGH.shape[1], k_BSKH.shape[1], len(pool_k_C), stride, block, selected)
    summary_k_BMKH, summary_v_BMKH = compress(k_BSKH, pool_k_C, stride), compress(v_BSKH, pool_v_C, stride)
    seen_TM = seen_summaries(q_BTKGH.shape[1], k_BSKH.shape[1], len(pool_k_C), stride)
    weights_BKGTM = attention_weights(q_BTKGH, summary_k_BMKH, seen_TM)
    compressed_BTKGH = np.einsum("bkgtm,bmkh->btkgh", weights_BKGTM, summary_v_BMKH)
    chosen_BTKX = select_blocks(weights_BKGTM, k_BSKH.shape[1], len(pool_k_C), stride=stride, block=block, selected=selected)
    selected_BTKGH = np.empty_like(q_BTKGH)
    for at, own, keys in _gathers(chosen_BTKX, k_BSKH.shape[1], block):
        selected_BTKGH[at] = attend(q_BTKGH[at], k_BSKH[own][:, keys], v_BSKH[own][:, keys], EVERY_PAIR)
    near_BTKGH = sliding_window(q_BTKGH, k_BSKH, v_BSKH, window=window)
    return (
        gates_BTKGZ[..., 0:1] * compressed_BTKGH + gates_BTKGZ[..., 1:2] * selected_BTKGH + gates_BTKGZ[..., 2:3] * near_BTKGH
    )


def require_sizes(T: int, S: int, C: int, stride: int, block: int, selected: int) -> None:
    """Refuse sizes that the paper's index arithmetic does not cover."""
    require_keys(T, S)
    if stride < 1 or C % stride or block % stride or block < C:
        raise ValueError(f"stride={stride} must divide the compressed C={C} and block={block}, and C be at most block")
    if selected < 3:
        raise ValueError(f"selected={selected}: the first block and two local ones are always among them")


def num_summaries(S: int, C: int, stride: int) -> int:
    """Count the compressed blocks that S keys fill.

    >>> num_summaries(31, 32, 16), num_summaries(32, 32, 16), num_summaries(64, 32, 16)
    (0, 1, 3)
    """
    return max((S - C) // stride + 1, 0)


def compress(x_BSKH: np.ndarray, pool_C: np.ndarray, stride: int) -> np.ndarray:
    """Return summary_BMKH: for every `stride`-th position the weighted sum of the C tokens from there on."""
    starts_M = stride * np.arange(num_summaries(x_BSKH.shape[1], len(pool_C), stride))
    blocks_BMCKH = x_BSKH[:, starts_M[:, None] + np.arange(len(pool_C))]
    return np.einsum("bmckh,c->bmkh", blocks_BMCKH, pool_C)


def seen_summaries(T: int, S: int, C: int, stride: int) -> np.ndarray:
    """Return seen_TM: a compressed token is seen from the position of its last token on."""
    ends_M = stride * np.arange(num_summaries(S, C, stride)) + C - 1
    return ends_M <= (S - T + np.arange(T))[:, None]


def block_scores(weights_BKGTM: np.ndarray, S: int, C: int, *, stride: int, block: int) -> np.ndarray:
    """Return score_BTKJ of J blocks: the weights of the compressed tokens that overlap it, summed over the group's heads.

        p_slc[j] = sum_{m < block / stride} sum_{n < C / stride} p_cmp[(block / stride) j - m - n]      (eq. 9 and 10)

    Blocks and compressed tokens are counted from 1 there; a compressed token counts once per stretch of `stride` tokens that
    it shares with the block.
    """
    B, K, _, T, M = weights_BKGTM.shape
    group_BTKM = np.einsum("bkgtm->btkm", weights_BKGTM)
    score_BTKJ = np.zeros((B, T, K, -(-S // block)), dtype=weights_BKGTM.dtype)
    for j in range(score_BTKJ.shape[-1]):
        for m in range(block // stride):
            for n in range(C // stride):
                i = (block // stride) * (j + 1) - m - n - 1
                if 0 <= i < M:
                    score_BTKJ[..., j] += group_BTKM[..., i]
    return score_BTKJ


def select_blocks(weights_BKGTM: np.ndarray, S: int, C: int, *, stride: int, block: int, selected: int) -> np.ndarray:
    """Return chosen_BTKX: the `selected` best blocks of every query, ascending, then -1 where fewer have begun.

    The first block and the query's own and previous one are always chosen (section 4.1); ties go to the earlier block.
    """
    score_BTKJ = block_scores(weights_BKGTM, S, C, stride=stride, block=block)
    T, J = score_BTKJ.shape[1], score_BTKJ.shape[3]
    own_T1 = ((S - T + np.arange(T)) // block)[:, None]
    block_J = np.arange(J)
    always_TJ = (block_J == 0) | (block_J == own_T1) | (block_J == own_T1 - 1)
    score_BTKJ = np.where(always_TJ[:, None], np.inf, score_BTKJ)
    score_BTKJ = np.where((block_J <= own_T1)[:, None], score_BTKJ, -np.inf)
    best_BTKX = np.argsort(-score_BTKJ, axis=-1, kind="stable")[..., :selected]
    ascending_BTKX = np.sort(np.where(best_BTKX <= own_T1[:, None], best_BTKX, J), axis=-1)
    return np.where(ascending_BTKX < J, ascending_BTKX, -1)


def _gathers(chosen_BTKX: np.ndarray, S: int, block: int):  # type: ignore[no-untyped-def]
    """Yield, per query and key head, where its queries lie, where its keys lie and which of them it gathers."""
    B, T, K, _ = chosen_BTKX.shape
    for b, t, k in np.ndindex(B, T, K):
        chosen_X = chosen_BTKX[b, t, k]
        keys = (chosen_X[chosen_X >= 0][:, None] * block + np.arange(block)).ravel()
        yield np.s_[b : b + 1, t : t + 1, k : k + 1], np.s_[b : b + 1, :, k : k + 1], keys[keys <= S - T + t]


def native_sparse_backward(
    dout_BTKGH: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    pool_k_C: np.ndarray,
    pool_v_C: np.ndarray,
    gates_BTKGZ: np.ndarray,
    *,
    stride: int = STRIDE,
    block: int = BLOCK,
    selected: int = SELECTED,
    window: int = WINDOW,
) -> tuple[np.ndarray, ...]:
    """Return the gradients of the six inputs: each branch's, weighed by its gate."""
    T, S, C = q_BTKGH.shape[1], k_BSKH.shape[1], len(pool_k_C)
    summary_k_BMKH, summary_v_BMKH = compress(k_BSKH, pool_k_C, stride), compress(v_BSKH, pool_v_C, stride)
    seen_TM = seen_summaries(T, S, C, stride)
    weights_BKGTM = attention_weights(q_BTKGH, summary_k_BMKH, seen_TM)
    chosen_BTKX = select_blocks(weights_BKGTM, S, C, stride=stride, block=block, selected=selected)
    dcompressed, dselected, dnear = (gates_BTKGZ[..., z : z + 1] * dout_BTKGH for z in range(3))

    dq, dsummary_k, dsummary_v = attend_backward(dcompressed, q_BTKGH, summary_k_BMKH, summary_v_BMKH, seen_TM)
    dk, dpool_k_C = _compress_backward(dsummary_k, k_BSKH, pool_k_C, stride)
    dv, dpool_v_C = _compress_backward(dsummary_v, v_BSKH, pool_v_C, stride)
    branches = [np.einsum("bkgtm,bmkh->btkgh", weights_BKGTM, summary_v_BMKH), np.empty_like(q_BTKGH)]
    for at, own, keys in _gathers(chosen_BTKX, S, block):
        k_BsKH, v_BsKH = k_BSKH[own][:, keys], v_BSKH[own][:, keys]
        branches[1][at] = attend(q_BTKGH[at], k_BsKH, v_BsKH, EVERY_PAIR)
        dq_at, dk_BsKH, dv_BsKH = attend_backward(dselected[at], q_BTKGH[at], k_BsKH, v_BsKH, EVERY_PAIR)
        dq[at] += dq_at
        dk[own][:, keys] += dk_BsKH
        dv[own][:, keys] += dv_BsKH
    branches.append(sliding_window(q_BTKGH, k_BSKH, v_BSKH, window=window))
    dq_near, dk_near, dv_near = sliding_window_backward(dnear, q_BTKGH, k_BSKH, v_BSKH, window=window)
    dgates_BTKGZ = np.stack([np.sum(dout_BTKGH * branch, axis=-1) for branch in branches], axis=-1)
    return dq + dq_near, dk + dk_near, dv + dv_near, dpool_k_C, dpool_v_C, dgates_BTKGZ


def _compress_backward(
    dsummary_BMKH: np.ndarray, x_BSKH: np.ndarray, pool_C: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (dx_BSKH, dpool_C); overlapping blocks add up."""
    dx_BSKH, dpool_C = np.zeros_like(x_BSKH), np.zeros_like(pool_C)
    M = dsummary_BMKH.shape[1]
    for c in range(len(pool_C)):
        place = np.s_[:, c : c + stride * M : stride]
        dx_BSKH[place] += pool_C[c] * dsummary_BMKH
        dpool_C[c] = np.sum(dsummary_BMKH * x_BSKH[place])
    return dx_BSKH, dpool_C


def _summaries_before(p: int, C: int, stride: int) -> int:
    """Pairs of the positions below p with the compressed tokens they see."""
    whole, rest = divmod(max(p - C + 1, 0), stride)
    return stride * whole * (whole + 1) // 2 + rest * (whole + 1)


def _selected_before(p: int, block: int, selected: int) -> int:
    """Pairs of the positions below p with the keys of their selected blocks."""
    all_seen = min(p, selected * block)
    whole, rest = divmod(p - all_seen, block)
    inside_own = whole * (block * (block + 1) // 2) + rest * (rest + 1) // 2
    return causal_pairs(all_seen, all_seen) + (p - all_seen) * (selected - 1) * block + inside_own


def native_sparse_pairs(
    T: int, S: int, C: int, *, stride: int = STRIDE, block: int = BLOCK, selected: int = SELECTED, window: int = WINDOW
) -> tuple[int, int, int]:
    """Count the pairs of the compressed, the selected and the window branch.

    >>> native_sparse_pairs(1, 65536, 32)  # a decode step at 64k reads 4095 + 1024 + 512 keys instead of 65536
    (4095, 1024, 512)
    """
    compressed = _summaries_before(S, C, stride) - _summaries_before(S - T, C, stride)
    chosen = _selected_before(S, block, selected) - _selected_before(S - T, block, selected)
    return compressed, chosen, window_pairs(T, S, window)


def native_sparse_cost(d: Dims) -> Cost:
    """Both matmuls over the pairs of the three branches, and the summaries of keys and values. Selection is not counted.

    Everything is read once.
    """
    heads, M = d["K"] * d["G"], num_summaries(d["S"], d["C"], STRIDE)
    pairs = sum(native_sparse_pairs(d["T"], d["S"], d["C"]))
    return Cost(
        flops=4 * d["B"] * d["H"] * (heads * pairs + d["K"] * M * d["C"]),
        elements_read=d["B"] * d["H"] * (heads * d["T"] + 2 * d["K"] * d["S"]) + 2 * d["C"] + 3 * d["B"] * heads * d["T"],
        elements_written=d["B"] * d["H"] * heads * d["T"],
    )


def draw_pool(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Weights around the mean's."""
    return (1 + 0.5 * rng.standard_normal(d["C"])) / d["C"]


def draw_gates(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Sigmoids."""
    return 1 / (1 + np.exp(-rng.standard_normal((d["B"], d["T"], d["K"], d["G"], 3))))


NATIVE_SPARSE = Op(
    reference=native_sparse,
    cost=native_sparse_cost,
    dims={
        "B": range(1, 3),
        "T": range(1, 4),
        "S": range(66, 90),
        "K": range(1, 3),
        "G": range(1, 4),
        "H": range(2, 10),
    },
    derived={"C": lambda d: 2 * STRIDE, "Z": lambda d: 3},
    shapes={
        "nsa 27b decode 64k": {"B": 1, "T": 1, "S": 65536, "K": 4, "G": 16, "H": 128},
        "nsa 27b prefill 512": {"B": 1, "T": 512, "S": 512, "K": 4, "G": 16, "H": 128},
    },
    paper="arXiv:2502.11089",
    backward=native_sparse_backward,
    draw={"pool_k_C": draw_pool, "pool_v_C": draw_pool, "gates_BTKGZ": draw_gates},
    options=({}, {"stride": 8, "block": 32, "selected": 3, "window": 5}),
    empty=("B", "T"),
    nonfinite=("gates_BTKGZ",),
    powers={"B": 1, "K": 1, "G": 1, "H": 1},
)
