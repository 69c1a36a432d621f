"""FlashAttention: softmax attention one tile of keys at a time (Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4).

The result is that of `attention.gqa`; what is new is that no score matrix exists. A tile of scores lives while its
keys pass by; what stays per query is the largest score so far, the sum of exponentials and the unnormalised result.

Axes: B batch, T query position, S key position, K key/value head, G query heads
per key/value head, H head width, C keys of a tile.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import causal_TS, require_keys
from llmlab.reference.attention.gqa import gqa_cost
from llmlab.reference.op import Cost, Dims, Op


def flash(
    q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True, block: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Attend tile by tile; return (out_BTKGH, lse_BTKG), lse the natural log of the sum of exponentials of the scores.

    Query t sits at position S - T + t. `block` is the number of keys in a tile; the result does not depend on it.

        peak' = max(peak, max s),  total' = e^(peak - peak') total + sum e^(s - peak'),
        out' = e^(peak - peak') out + e^(s - peak') v;   at the end out / total,  lse = peak + log total

    A query whose scores are all -inf gives zeros and lse = -inf. A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: causal with more queries than keys (T > S), or a block below 1.

    >>> q = np.zeros((1, 1, 1, 1, 2)); k = np.zeros((1, 4, 1, 2)); v = np.arange(8.0).reshape(1, 4, 1, 2)
    >>> out, lse = flash(q, k, v, block=3)
    >>> out.ravel(), bool(np.isclose(lse.item(), np.log(4)))
    (array([3., 4.]), True)
    """
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    if block < 1:
        raise ValueError(f"block={block} must be at least 1")
    out_BTKGH = np.zeros_like(q_BTKGH)
    total_BTKG = np.zeros_like(q_BTKGH[..., 0])
    peak_BTKG = np.full_like(total_BTKG, -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf is NaN and log 0 is -inf: both are the answer
        for tile in _tiles(S, block):
            scores_BTKGC = _scores(q_BTKGH, k_BSKH, tile, causal)
            new_peak_BTKG = np.maximum(peak_BTKG, scores_BTKGC.max(axis=-1))
            shift_BTKG = np.where(new_peak_BTKG == -np.inf, 0, new_peak_BTKG)
            exps_BTKGC = np.exp(scores_BTKGC - shift_BTKG[..., None])
            shrink_BTKG = np.exp(peak_BTKG - shift_BTKG)
            total_BTKG = shrink_BTKG * total_BTKG + exps_BTKGC.sum(axis=-1)
            out_BTKGH = shrink_BTKG[..., None] * out_BTKGH + np.einsum("btkgc,bckh->btkgh", exps_BTKGC, v_BSKH[:, tile])
            peak_BTKG = new_peak_BTKG
        lse_BTKG = peak_BTKG + np.log(total_BTKG)
    return out_BTKGH / np.where(total_BTKG == 0, 1, total_BTKG)[..., None], lse_BTKG


def _tiles(S: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, S)) for start in range(0, S, block)]


def _scores(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, tile: slice, causal: bool) -> np.ndarray:
    T, H = q_BTKGH.shape[1], q_BTKGH.shape[-1]
    scores_BTKGC = np.einsum("btkgh,bckh->btkgc", q_BTKGH, k_BSKH[:, tile]) * H**-0.5
    if not causal:
        return scores_BTKGC
    seen_TC = causal_TS(T, k_BSKH.shape[1])[:, tile]
    return np.where(seen_TC[:, None, None, :], scores_BTKGC, -np.inf)


def flash_backward(
    dout_BTKGH: np.ndarray,
    dlse_BTKG: np.ndarray,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    *,
    causal: bool = True,
    block: int = 64,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH), the weights recomputed tile by tile from lse.

    weights = e^(s - lse),  dscores = weights (dout v' - sum(dout out) + dlse)        (algorithm 4; d lse / d s = weights)
    """
    scale = q_BTKGH.shape[-1] ** -0.5
    out_BTKGH, lse_BTKG = flash(q_BTKGH, k_BSKH, v_BSKH, causal=causal, block=block)
    drift_BTKG = np.sum(dout_BTKGH * out_BTKGH, axis=-1) - dlse_BTKG
    shift_BTKG = np.where(lse_BTKG == -np.inf, 0, lse_BTKG)
    dq_BTKGH, dk_BSKH, dv_BSKH = np.zeros_like(q_BTKGH), np.zeros_like(k_BSKH), np.zeros_like(v_BSKH)
    for tile in _tiles(k_BSKH.shape[1], block):
        weights_BTKGC = np.exp(_scores(q_BTKGH, k_BSKH, tile, causal) - shift_BTKG[..., None])
        dweights_BTKGC = np.einsum("btkgh,bckh->btkgc", dout_BTKGH, v_BSKH[:, tile])
        dscores_BTKGC = weights_BTKGC * (dweights_BTKGC - drift_BTKG[..., None]) * scale
        dq_BTKGH += np.einsum("btkgc,bckh->btkgh", dscores_BTKGC, k_BSKH[:, tile])
        dk_BSKH[:, tile] = np.einsum("btkgc,btkgh->bckh", dscores_BTKGC, q_BTKGH)
        dv_BSKH[:, tile] = np.einsum("btkgc,btkgh->bckh", weights_BTKGC, dout_BTKGH)
    return dq_BTKGH, dk_BSKH, dv_BSKH


def flash_cost(d: Dims, *, causal: bool = True) -> Cost:
    """Both matmuls over the pairs that are seen, 2 FLOPs per multiply-add; exponentials are not counted.

    Query, keys and values are read once; the result and one lse per query head are written once. Rereading keys for
    every tile of queries is the kernel's affair: it happens in caches.
    """
    lse = d["B"] * d["T"] * d["K"] * d["G"]
    return gqa_cost(d, causal=causal) + Cost(flops=0, elements_read=0, elements_written=lse)


FLASH = Op(
    reference=flash,
    cost=flash_cost,
    dims={"B": range(1, 3), "T": range(1, 6), "S": range(5, 9), "K": range(1, 4), "G": range(1, 4), "H": range(1, 20)},
    shapes={
        "gpt-2 prefill 1k": {"B": 1, "T": 1024, "S": 1024, "K": 12, "G": 1, "H": 64},
        "llama-3.2-1b prefill 2k": {"B": 1, "T": 2048, "S": 2048, "K": 8, "G": 4, "H": 64},
        "llama-3-8b prefill 1k": {"B": 1, "T": 1024, "S": 1024, "K": 8, "G": 4, "H": 128},
    },
    paper="arXiv:2205.14135",
    backward=flash_backward,
    options=({}, {"block": 2}, {"causal": False, "block": 3}),
    empty=("B", "T"),
    nonfinite=("q_BTKGH",),
    powers={"B": 1, "S": 1, "K": 1, "G": 1, "H": 1},
)
