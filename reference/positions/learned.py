"""Learned absolute positions (Gehring et al. 2017, arXiv:1705.03122, section 3.1; GPT, BERT).

Axes: B batch, T position, P positions in the table, D model width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.embedding import embedding, embedding_backward
from llmlab.reference.op import Cost, Dims, Op


def learned(x_BTD: np.ndarray, positions_BT: np.ndarray, weight_PD: np.ndarray) -> np.ndarray:
    """Add to every token the row of its position; return out_BTD.

        out = x + weight[position]

    A model has no answer beyond its table. NaN and infinities come out where their element is added.

    Raises:
        ValueError: a position outside 0 .. P-1.

    >>> learned(np.zeros((1, 2, 1)), np.array([[2, 0]]), np.array([[1.0], [2.0], [3.0]])).ravel()
    array([3., 1.])
    """
    return x_BTD + embedding(positions_BT, weight_PD)


def learned_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, positions_BT: np.ndarray, weight_PD: np.ndarray
) -> tuple[np.ndarray, None, np.ndarray]:
    """Return (dx_BTD, None, dweight_PD): a row gathers the gradients of every token at its position."""
    _, dweight_PD = embedding_backward(dout_BTD, positions_BT, weight_PD)
    return dout_BTD.copy(), None, dweight_PD


def learned_cost(d: Dims) -> Cost:
    """One addition per element; tokens, positions and at most each row of the table read once."""
    tokens = d["B"] * d["T"]
    return Cost(
        flops=tokens * d["D"],
        elements_read=tokens * d["D"] + tokens + min(tokens, d["P"]) * d["D"],
        elements_written=tokens * d["D"],
    )


def draw_table_positions(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Any position of the table, as left-padded batches have them."""
    return rng.integers(0, d["P"], (d["B"], d["T"]))


LEARNED = Op(
    reference=learned,
    cost=learned_cost,
    dims={"B": range(1, 3), "T": range(1, 8), "P": range(1, 12), "D": range(1, 20)},
    shapes={"gpt-2 batch 8 of 1k tokens": {"B": 8, "T": 1024, "P": 1024, "D": 768}},
    paper="arXiv:1705.03122",
    backward=learned_backward,
    draw={"positions_BT": draw_table_positions},
    empty=("B", "T"),
    nonfinite=("x_BTD",),
)
