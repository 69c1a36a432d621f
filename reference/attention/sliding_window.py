"""Causal attention to the last `window` keys (Beltagy et al. 2020, arXiv:2004.05150, section 3.1).

As in Mistral 7B (Jiang et al. 2023, arXiv:2310.06825) and the local layers of Gemma 3.

Axes: B batch, T query position, S key position, K key/value head, G query heads
per key/value head, H head width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import attend_backward, causal_TS, require_keys, window_pairs
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op

WINDOW = 1024  # Gemma 3's local layers (arXiv:2503.19786, section 2); Mistral 7B has 4096


def sliding_window(q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, window: int = WINDOW) -> np.ndarray:
    """Attend each query to itself and the window - 1 keys before it; return out_BTKGH.

    Query t sits at absolute position p = S - T + t and sees keys p - window < s <= p, the query's own included.

        out = softmax(q k' / sqrt(H)) v        over those keys

    A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: more queries than keys (T > S), or a window below 1.

    >>> zero = np.zeros((1, 3, 1, 1, 1)); values = np.array([1.0, 3.0, 9.0]).reshape(1, 3, 1, 1)
    >>> sliding_window(zero, values, values, window=2).ravel()
    array([1., 2., 6.])
    """
    T, H = q_BTKGH.shape[1], q_BTKGH.shape[-1]
    S = k_BSKH.shape[1]
    require_keys(T, S)
    require_window(window)
    scores_BKGTS = np.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH) * H**-0.5
    weights_BKGTS = softmax(np.where(causal_TS(T, S, window=window), scores_BKGTS, -np.inf))
    return np.einsum("bkgts,bskh->btkgh", weights_BKGTS, v_BSKH)


def require_window(window: int) -> None:
    """Refuse a window in which a query does not even see itself."""
    if window < 1:
        raise ValueError(f"window={window} must be at least 1: a query sees itself")


def sliding_window_backward(
    dout_BTKGH: np.ndarray, q_BTKGH: np.ndarray, k_BSKH: np.ndarray, v_BSKH: np.ndarray, *, window: int = WINDOW
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTKGH, dk_BSKH, dv_BSKH)."""
    seen_TS = causal_TS(q_BTKGH.shape[1], k_BSKH.shape[1], window=window)
    return attend_backward(dout_BTKGH, q_BTKGH, k_BSKH, v_BSKH, seen_TS)


def sliding_window_cost(d: Dims, *, window: int = WINDOW) -> Cost:
    """Both matmuls over the pairs inside the window, 2 FLOPs per multiply-add; exponentials are not counted.

    Only the last T + window - 1 keys and values are read, once.
    """
    heads = d["K"] * d["G"]
    keys = min(d["S"], d["T"] + window - 1)
    return Cost(
        flops=4 * d["B"] * heads * window_pairs(d["T"], d["S"], window) * d["H"],
        elements_read=d["B"] * d["H"] * (heads * d["T"] + 2 * d["K"] * keys),
        elements_written=d["B"] * d["H"] * heads * d["T"],
    )


SLIDING_WINDOW = Op(
    reference=sliding_window,
    cost=sliding_window_cost,
    dims={"B": range(1, 3), "T": range(1, 6), "S": range(5, 9), "K": range(1, 4), "G": range(1, 4), "H": range(1, 20)},
    shapes={
        "gemma-3-4b local layer prefill 2k": {"B": 1, "T": 2048, "S": 2048, "K": 4, "G": 2, "H": 256},
        "gemma-3-4b local layer decode 8k batch 8": {"B": 8, "T": 1, "S": 8192, "K": 4, "G": 2, "H": 256},
    },
    paper="arXiv:2004.05150",
    backward=sliding_window_backward,
    options=({}, {"window": 2}, {"window": 5}),
    empty=("B", "T"),
    nonfinite=("q_BTKGH",),
    powers={"B": 1, "S": 0, "K": 1, "G": 1, "H": 1},
)
