"""Softmax, shifted by the row's maximum so that it never overflows (Goodfellow et al. 2016, Deep Learning, section 4.1).

Axes: B batch, T row, S scored entry. Any other number of axes works the same.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def softmax(x_BTS: np.ndarray, *, axis: int = -1) -> np.ndarray:
    """Turn scores into weights that sum to 1 along `axis`; return weights_BTS.

        weights = exp(x - max x) / sum exp(x - max x)

    A row that is all -inf (an attention row that may see nothing), or has no entries, gives zeros. A NaN or a +inf makes
    its whole row NaN.

    Raises:
        ValueError: `axis` is not an axis of x.

    >>> softmax(np.log([1.0, 2.0, 5.0]))
    array([0.125, 0.25 , 0.625])
    >>> softmax(np.array([[-np.inf, -np.inf], [-np.inf, 1000.0]]))
    array([[0., 0.],
           [0., 1.]])
    """
    peak_BT1 = np.max(x_BTS, axis=axis, keepdims=True, initial=-np.inf)
    seen_BT1 = peak_BT1 != -np.inf
    with np.errstate(invalid="ignore"):  # inf - inf: the NaN is the answer
        weights_BTS = np.exp(x_BTS - np.where(seen_BT1, peak_BT1, 0))
        total_BT1 = np.sum(weights_BTS, axis=axis, keepdims=True)
        return weights_BTS / np.where(seen_BT1, total_BT1, 1)


def softmax_backward(dweights_BTS: np.ndarray, x_BTS: np.ndarray, *, axis: int = -1) -> tuple[np.ndarray]:
    """Return (dx_BTS,) with dx = weights (dweights - sum dweights weights); zeros for a row that saw nothing."""
    weights_BTS = softmax(x_BTS, axis=axis)
    drift_BT1 = np.sum(dweights_BTS * weights_BTS, axis=axis, keepdims=True)
    return (weights_BTS * (dweights_BTS - drift_BT1),)


def softmax_cost(d: Dims) -> Cost:
    """Maximum, subtract, exp, sum and divide, one FLOP each; scores read once, weights written once."""
    elements = d["B"] * d["T"] * d["S"]
    return Cost(flops=5 * elements, elements_read=elements, elements_written=elements)


SOFTMAX = Op(
    reference=softmax,
    cost=softmax_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "S": range(1, 80)},
    shapes={
        "8k rows of 4k scores": {"B": 1, "T": 8192, "S": 4096},
        "llama-3-8b next-token logits batch 32": {"B": 32, "T": 1, "S": 128256},
    },
    paper="doi:10.5555/3086952",
    backward=softmax_backward,
    options=({}, {"axis": 1}),
    empty=("B", "T", "S"),
    powers={"B": 1, "T": 1, "S": 1},
)
