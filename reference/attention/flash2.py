"""FlashAttention-2: blocks of queries outside, tiles of keys inside (Dao 2023, arXiv:2307.08691, algorithms 1 and 2).

The result is that of `attention.flash`; what changed is the order and the split of the work. A block of queries is a task of
its own and never meets another one: more tasks for the same sequence, the running result stays in registers, it is divided
by its sum once at the end and not at every tile, and tiles that a causal mask hides whole are never touched. One number per
row, the log-sum-exp, is kept for the backward pass, whose tasks are tiles of keys.

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width, R queries
of a block, C keys of a tile.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import require_keys
from llmlab.reference.attention.flash import flash_cost
from llmlab.reference.op import Dims, Op


def flash2(
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    *,
    causal: bool = True,
    rows: int = 128,
    block: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Attend block by block; return (out_BTKGH, lse_BTKG), lse the natural log of the sum of exponentials of the scores.

    Query t sits at position S - T + t. `rows` queries make a block, `block` keys a tile; the result depends on neither.

        per tile   peak' = max(peak, max s),  total' = e^(peak - peak') total + sum e^(s - peak'),
                   out' = e^(peak - peak') out + e^(s - peak') v            (algorithm 1, lines 8 to 10: out is not divided)
        at the end out / total,  lse = peak + log total                     (lines 12 and 13)

    A query whose scores are all -inf gives zeros and lse = -inf. A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: causal with more queries than keys (T > S), or rows or block below 1.

    >>> q = np.zeros((1, 2, 1, 1, 2)); k = np.zeros((1, 2, 1, 2)); v = np.arange(4.0).reshape(1, 2, 1, 2)
    >>> out, lse = flash2(q, k, v, rows=1, block=1)
    >>> out.ravel(), bool(np.isclose(lse.ravel()[1], np.log(2)))
    (array([0., 1., 1., 2.]), True)
    """
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    require(T, S, causal, rows, block)
    out_BTKGH, lse_BTKG = np.empty_like(q_BTKGH), np.empty_like(q_BTKGH[..., 0])
    for start in range(0, T, rows):
        at = slice(start, min(start + rows, T))
        out_BRKGH, total_BRKG = np.zeros_like(q_BTKGH[:, at]), np.zeros_like(lse_BTKG[:, at])
        peak_BRKG = np.full_like(total_BRKG, -np.inf)
        with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf is NaN and log 0 is -inf: both are the answer
            for tile in tiles_seen(at, T, S, causal, block):
                scores_BRKGC = _scores(q_BTKGH, k_BSKH, at, tile, causal)
                new_peak_BRKG = np.maximum(peak_BRKG, scores_BRKGC.max(axis=-1))
                shift_BRKG = np.where(new_peak_BRKG == -np.inf, 0, new_peak_BRKG)
                exps_BRKGC = np.exp(scores_BRKGC - shift_BRKG[..., None])
                shrink_BRKG = np.exp(peak_BRKG - shift_BRKG)
                total_BRKG = shrink_BRKG * total_BRKG + exps_BRKGC.sum(axis=-1)
                added_BRKGH = np.einsum("brkgc,bckh->brkgh", exps_BRKGC, v_BSKH[:, tile])
                out_BRKGH = shrink_BRKG[..., None] * out_BRKGH + added_BRKGH
                peak_BRKG = new_peak_BRKG
            lse_BTKG[:, at] = peak_BRKG + np.log(total_BRKG)
        out_BTKGH[:, at] = out_BRKGH / np.where(total_BRKG == 0, 1, total_BRKG)[..., None]
    return out_BTKGH, lse_BTKG


def require(T: int, S: int, causal: bool, rows: int, block: int) -> None:
    """Refuse sizes that leave a query without a position or a block without members."""
    if causal:
        require_keys(T, S)
    if rows < 1 or block < 1:
        raise ValueError(f"rows={rows} and block={block} must be at least 1")


def tiles_seen(at: slice, T: int, S: int, causal: bool, block: int) -> list[slice]:
    """Tiles of keys that some query of a block sees: causal blocks stop at their last query's position (section 3.1.1).

    >>> tiles_seen(slice(0, 2), 4, 4, True, 2), len(tiles_seen(slice(0, 2), 4, 4, False, 2))
    ([slice(0, 2, None)], 2)
    """
    end = S - T + at.stop if causal else S
    return [slice(start, min(start + block, end)) for start in range(0, end, block)]


def _scores(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, at: slice, tile: slice, causal: bool) -> np.ndarray:
    T, H = q_BTKGH.shape[1], q_BTKGH.shape[-1]
    scores_BRKGC = np.einsum("brkgh,bckh->brkgc", q_BTKGH[:, at], k_BSKH[:, tile]) * H**-0.5
    if not causal:
        return scores_BRKGC
    position_R = k_BSKH.shape[1] - T + np.arange(at.start, at.stop)
    seen_RC = position_R[:, None] >= np.arange(tile.start, tile.stop)
    return np.where(seen_RC[:, None, None, :], scores_BRKGC, -np.inf)


def flash2_backward(
    dout_BTKGH: np.ndarray,
    dlse_BTKG: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    *,
    causal: bool = True,
    rows: int = 128,
    block: int = 64,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH): tiles of keys outside, blocks of queries inside, adding to dq (algorithm 2).

    weights = e^(s - lse),  dscores = weights (dout v' - sum(dout out) + dlse)
    """
    T, S, scale = q_BTKGH.shape[1], k_BSKH.shape[1], q_BTKGH.shape[-1] ** -0.5
    out_BTKGH, lse_BTKG = flash2(q_BTKGH, k_BSKH, v_BSKH, causal=causal, rows=rows, block=block)
    drift_BTKG = np.sum(dout_BTKGH * out_BTKGH, axis=-1) - dlse_BTKG
    shift_BTKG = np.where(lse_BTKG == -np.inf, 0, lse_BTKG)
    dq_BTKGH, dk_BSKH, dv_BSKH = np.zeros_like(q_BTKGH), np.zeros_like(k_BSKH), np.zeros_like(v_BSKH)
    for tile in (slice(start, min(start + block, S)) for start in range(0, S, block)):
        for at in (slice(start, min(start + rows, T)) for start in range(0, T, rows)):
            if causal and S - T + at.stop <= tile.start:
                continue
            weights_BRKGC = np.exp(_scores(q_BTKGH, k_BSKH, at, tile, causal) - shift_BTKG[:, at, ..., None])
            dweights_BRKGC = np.einsum("brkgh,bckh->brkgc", dout_BTKGH[:, at], v_BSKH[:, tile])
            dscores_BRKGC = weights_BRKGC * (dweights_BRKGC - drift_BTKG[:, at, ..., None]) * scale
            dv_BSKH[:, tile] += np.einsum("brkgc,brkgh->bckh", weights_BRKGC, dout_BTKGH[:, at])
            dk_BSKH[:, tile] += np.einsum("brkgc,brkgh->bckh", dscores_BRKGC, q_BTKGH[:, at])
            dq_BTKGH[:, at] += np.einsum("brkgc,bckh->brkgh", dscores_BRKGC, k_BSKH[:, tile])
    return dq_BTKGH, dk_BSKH, dv_BSKH


def tasks_of(d: Dims, *, rows: int = 128) -> int:
    """Independent tasks of the forward pass: sequences, heads and, new in version 2, blocks of queries (section 3.2).

    >>> tasks_of({"B": 1, "T": 4096, "K": 8, "G": 4})
    1024
    """
    return d["B"] * d["K"] * d["G"] * -(-d["T"] // rows)


FLASH2 = Op(
    reference=flash2,
    cost=flash_cost,
    dims={"B": range(1, 3), "T": range(1, 6), "S": range(5, 9), "K": range(1, 4), "G": range(1, 4), "H": range(1, 20)},
    shapes={
        "llama-3-8b prefill 4k": {"B": 1, "T": 4096, "S": 4096, "K": 8, "G": 4, "H": 128},
        "16 heads of 64, 2k": {"B": 1, "T": 2048, "S": 2048, "K": 16, "G": 1, "H": 64},
    },
    paper="arXiv:2307.08691",
    backward=flash2_backward,
    options=({}, {"rows": 2, "block": 3}, {"causal": False, "rows": 3, "block": 2}),
    empty=("B", "T"),
    nonfinite=("q_BTKGH",),
    powers={"B": 1, "S": 1, "K": 1, "G": 1, "H": 1},
)
