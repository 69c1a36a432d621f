"""Attention with linear biases (Press, Smith and Lewis 2021, arXiv:2108.12409, section 3).

Axes: B batch, N head, T query position, S key position.
"""

from __future__ import annotations

import math

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Return slopes_N: 2^(-8/n), 2^(-16/n), ... for a power of two n (float64).

    Other counts take the slopes of the power of two below, then every second slope of the one above, as in the paper's code.

    Raises:
        ValueError: fewer than one head.

    >>> alibi_slopes(8).tolist()
    [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
    >>> alibi_slopes(3).round(4).tolist()
    [0.0625, 0.0039, 0.25]
    """
    if num_heads < 1:
        raise ValueError(f"num_heads={num_heads}: must be at least 1")
    below = 2 ** math.floor(math.log2(num_heads))
    slopes_N = 2.0 ** (-8 / below * np.arange(1, below + 1))
    between_N = 2.0 ** (-4 / below * np.arange(1, 2 * (num_heads - below), 2))
    return np.concatenate([slopes_N, between_N])


def alibi(scores_BNTS: np.ndarray) -> np.ndarray:
    """Lower each attention score in proportion to its key's distance; return biased_BNTS.

        biased = scores + slope_n (s - t),   t counted so that query t sits at position S - T + t

    Keys after the query get a bonus of the same slope: the causal mask is applied elsewhere. NaN and infinities stay where
    they are.

    Raises:
        ValueError: no head (N = 0).

    >>> alibi(np.zeros((1, 1, 2, 3)))[0, 0] * 256  # one head: slope 1/256
    array([[-1.,  0.,  1.],
           [-2., -1.,  0.]])
    """
    _, N, T, S = scores_BNTS.shape
    distance_TS = np.arange(S)[None, :] - (S - T + np.arange(T))[:, None]
    bias_NTS = np.einsum("n,ts->nts", alibi_slopes(N), distance_TS)
    return scores_BNTS + bias_NTS.astype(scores_BNTS.dtype)


def alibi_backward(dbiased_BNTS: np.ndarray, scores_BNTS: np.ndarray) -> tuple[np.ndarray]:
    """Return (dscores_BNTS,): the bias is a constant."""
    return (dbiased_BNTS.copy(),)


def alibi_cost(d: Dims) -> Cost:
    """One multiplication and one addition per score; scores read once and written once."""
    elements = d["B"] * d["N"] * d["T"] * d["S"]
    return Cost(flops=2 * elements, elements_read=elements, elements_written=elements)


ALIBI = Op(
    reference=alibi,
    cost=alibi_cost,
    dims={"B": range(1, 3), "N": range(1, 14), "T": range(1, 6), "S": range(5, 12)},
    shapes={
        "bloom-7b 1k tokens": {"B": 1, "N": 32, "T": 1024, "S": 1024},
        "bloom-7b decode batch 16 of 2k": {"B": 16, "N": 32, "T": 1, "S": 2048},
    },
    paper="arXiv:2108.12409",
    backward=alibi_backward,
    empty=("B", "T"),
    powers={"B": 1, "N": 1, "T": 1, "S": 1},
)
