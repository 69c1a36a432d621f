"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245, section 2.2).

K = 1 is multi-query attention (Shazeer 2019, arXiv:1911.02150), G = 1 is multi-head attention.

Axes: B batch, T query position, S key position, K key/value head, G query heads
per key/value head, H head width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import attend_backward, causal_pairs, causal_TS, require_keys
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def gqa(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True) -> np.ndarray:
    """Attend G query heads to each of K key/value heads; return out_BTKGH.

    Query t sits at absolute position S - T + t, so a decode step is T = 1.

        out = softmax(q k' / sqrt(H)) v        (eq. 1 of Vaswani et al. 2017, arXiv:1706.03762)

    A NaN or infinity in a query stays in that query's row. One in a key or value spoils the rows that see it; the formula
    multiplies hidden values by 0, which spreads it further, while kernels skip them.

    Raises:
        ValueError: causal, and there are more queries than keys (T > S).

    >>> one = np.ones((1, 1, 1, 1, 2)); keys = np.ones((1, 3, 1, 2))
    >>> gqa(one, keys, keys * [[[[2.0, 5.0]]]]).ravel()
    array([2., 5.])
    """
    T, H = q_BTKGH.shape[1], q_BTKGH.shape[-1]
    S = k_BSKH.shape[1]
    scores_BKGTS = np.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH) * H**-0.5
    if causal:
        require_keys(T, S)
        scores_BKGTS = np.where(causal_TS(T, S), scores_BKGTS, -np.inf)
    weights_BKGTS = softmax(scores_BKGTS)
    return np.einsum("bkgts,bskh->btkgh", weights_BKGTS, v_BSKH)


def gqa_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, causal: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH); a shared key or value sums the gradients of its G query heads."""
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    seen_TS = causal_TS(T, S) if causal else np.ones((T, S), dtype=bool)
    return attend_backward(dout_BTKGH, q_BTKGH, k_BSKH, v_BSKH, seen_TS)


def gqa_cost(d: Dims, *, causal: bool = True) -> Cost:
    """Both matmuls over the pairs that are seen, 2 FLOPs per multiply-add; exponentials are not counted.

    Query, keys and values are read once and the result is written once.
    """
    heads = d["K"] * d["G"]
    pairs = causal_pairs(d["T"], d["S"]) if causal else d["T"] * d["S"]
    return Cost(
        flops=4 * d["B"] * heads * pairs * d["H"],
        elements_read=d["B"] * d["H"] * (heads * d["T"] + 2 * d["K"] * d["S"]),
        elements_written=d["B"] * d["H"] * heads * d["T"],
    )


GQA = Op(
    reference=gqa,
    cost=gqa_cost,
    dims={"B": range(1, 3), "T": range(1, 6), "S": range(5, 9), "K": range(1, 4), "G": range(1, 4), "H": range(1, 20)},
    shapes={
        "llama-3-8b decode 4k batch 8": {"B": 8, "T": 1, "S": 4096, "K": 8, "G": 4, "H": 128},
        "llama-3-8b prefill 1k": {"B": 1, "T": 1024, "S": 1024, "K": 8, "G": 4, "H": 128},
        "llama-3-8b chunk 512 of 2k": {"B": 1, "T": 512, "S": 2048, "K": 8, "G": 4, "H": 128},
    },
    paper="arXiv:2305.13245",
    backward=gqa_backward,
    options=({}, {"causal": False}),
    empty=("B", "T"),
    nonfinite=("q_BTKGH",),
    powers={"B": 1, "S": 1, "K": 1, "G": 1, "H": 1},
)
