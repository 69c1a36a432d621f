"""Flash-Decoding: one query per sequence, its keys split over workers and merged by log-sum-exp (Dao et al. 2023).

Source: "Flash-Decoding for long-context inference", https://crfm.stanford.edu/2023/10/12/flashdecoding.html; the merge is
that of FlashAttention's tiles (arXiv:2205.14135, section 3.1).

Axes: B batch, S key position, K key/value head, G query heads per key/value head, H head width, W part of the keys.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def flash_decoding(q_BKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, splits: int = 8) -> np.ndarray:
    """Attend one query per sequence to all keys, in `splits` independent parts; return out_BKGH.

    Each part gives its own softmax result and log-sum-exp; the parts are then weighted by their share of the total.

        out = sum_w e^(lse_w - lse) out_w,   lse = log sum_w e^lse_w

    The result does not depend on `splits`; parts may be empty, and with no keys at all (S = 0) it is zeros.
    A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: `splits` is below 1.

    >>> q = np.zeros((1, 1, 1, 2)); k = np.zeros((1, 3, 1, 2)); v = np.array([[[[0.0, 3]], [[3, 6]], [[6, 9]]]])
    >>> flash_decoding(q, k, v, splits=2).ravel()
    array([3., 6.])
    """
    if splits < 1:
        raise ValueError(f"splits={splits} must be at least 1")
    bounds = np.linspace(0, k_BSKH.shape[1], splits + 1).astype(int)
    parts = [_part(q_BKGH, k_BSKH[:, start:end], v_BSKH[:, start:end]) for start, end in pairwise(bounds)]
    out_WBKGH = np.stack([out for out, _ in parts])
    lse_WBKG = np.stack([lse for _, lse in parts])
    with np.errstate(invalid="ignore"):
        peak_BKG = lse_WBKG.max(axis=0)
        share_WBKG = np.exp(lse_WBKG - np.where(peak_BKG == -np.inf, 0, peak_BKG))
        total_BKG = share_WBKG.sum(axis=0)
        merged_BKGH = np.einsum("wbkg,wbkgh->bkgh", share_WBKG, out_WBKGH)
    return merged_BKGH / np.where(total_BKG == 0, 1, total_BKG)[..., None]


def _part(q_BKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores_BKGS = np.einsum("bkgh,bskh->bkgs", q_BKGH, k_BSKH) * q_BKGH.shape[-1] ** -0.5
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf is NaN and log 0 is -inf: both are the answer
        peak_BKG = scores_BKGS.max(axis=-1, initial=-np.inf)
        shift_BKG = np.where(peak_BKG == -np.inf, 0, peak_BKG).astype(q_BKGH.dtype)
        exps_BKGS = np.exp(scores_BKGS - shift_BKG[..., None])
        total_BKG = exps_BKGS.sum(axis=-1)
        out_BKGH = np.einsum("bkgs,bskh->bkgh", exps_BKGS, v_BSKH) / np.where(total_BKG == 0, 1, total_BKG)[..., None]
        return out_BKGH, shift_BKG + np.log(total_BKG)


def flash_decoding_cost(d: Dims) -> Cost:
    """Both matmuls, 2 FLOPs per multiply-add; exponentials and the merge are not counted.

    Keys and values are read once; the partial results of a few splits stay in caches.
    """
    rows = d["B"] * d["K"] * d["G"] * d["H"]
    return Cost(
        flops=4 * rows * d["S"],
        elements_read=rows + 2 * d["B"] * d["S"] * d["K"] * d["H"],
        elements_written=rows,
    )


FLASH_DECODING = Op(
    reference=flash_decoding,
    cost=flash_decoding_cost,
    dims={"B": range(1, 3), "S": range(1, 40), "K": range(1, 3), "G": range(1, 5), "H": range(1, 20)},
    shapes={
        "llama-3-8b decode 8k": {"B": 1, "S": 8192, "K": 8, "G": 4, "H": 128},
        "llama-2-7b decode 4k": {"B": 1, "S": 4096, "K": 32, "G": 1, "H": 128},
        "llama-3-8b decode 32k": {"B": 1, "S": 32768, "K": 8, "G": 4, "H": 128},
    },
    paper="https://crfm.stanford.edu/2023/10/12/flashdecoding.html",
    options=({}, {"splits": 1}, {"splits": 3}),
    empty=("B", "S"),
    nonfinite=("q_BKGH",),
    powers={"B": 1, "S": 1, "K": 1, "G": 1, "H": 1},
)
