"""Tensor parallelism in 2.5 dimensions: SUMMA grids that share weights (Tesseract, Wang et al. 2021, arXiv:2105.14500).

p = d q^2 ranks form d layers of a q x q grid. The rows of the activation are cut into d q parts, so a layer of the grid works
on its own share; the weight's q x q blocks are held by every layer. Forwards and for dx the layers need nothing of each other;
the gradients of the weight are all-reduced over the depth. Depth 1 is two-dimensional parallelism. Over all ranks,

    forward   (q - 1) (M K + d K N) elements
    dx        (q - 1) (M K + d K N)
    dweight   (q - 1) (M K + d K N) + 2 (d - 1) K N

Axes: M rows (batch times positions), K inner width, N output width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.parallel._exchange import all_reduce, lines, same_to_rounding
from llmlab.reference.parallel._summa import (
    blocks_of,
    joined,
    linear_arguments,
    require_grid,
    times,
    times_transposed,
    transposed_times,
)
from llmlab.reference.parallel._traffic import Traffic


def tensor_2_5d(
    *, x_MK: np.ndarray, weight_KN: np.ndarray, dout_MN: np.ndarray, side: int, depth: int, traffic: Traffic | None = None
) -> dict[str, np.ndarray]:
    """Run a linear layer forwards and backwards on `depth` grids of side x side; return out, dx and dweight.

        out = x W,   dx = dout W',   dW = x' dout

    Raises:
        ValueError: the rows do not divide by depth times side, or a width by the side.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> result = tensor_2_5d(**linear_arguments(rng, M=4, K=6, N=2), side=2, depth=2, traffic=traffic)
    >>> traffic.total_bytes == (3 * (2 - 1) * (4 * 6 + 2 * 6 * 2) + 2 * (2 - 1) * 6 * 2) * 8
    True
    """
    traffic = Traffic() if traffic is None else traffic
    (M, K), N = x_MK.shape, weight_KN.shape[1]
    require_grid((side, depth), {"rows": (M, side * depth), "inner width": (K, side), "output width": (N, side)})
    shape = (depth, side, side)
    x, dout = (blocks_of(whole, depth * side, side) for whole in (x_MK, dout_MN))
    weight = blocks_of(weight_KN, side, side) * depth
    out = times(x, weight, shape, traffic)
    dx = times_transposed(dout, weight, shape, traffic)
    dweight = all_reduce(transposed_times(x, dout, shape, traffic), traffic, groups=lines(shape, 0))
    return {
        "out": joined(out, depth * side, side),
        "dx": joined(dx, depth * side, side),
        "dweight": joined(dweight[-side * side :], side, side),
    }


def tensor_2_5d_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small layer on 1 or 2 grids of side 1 or 2, or 3 of side 1."""
    side, depth = [(1, 1), (1, 3), (2, 1), (2, 2)][int(rng.integers(4))]
    K, N = (side * int(times) for times in rng.integers(1, 5, 2))
    return {**linear_arguments(rng, M=side * depth * int(rng.integers(1, 4)), K=K, N=N), "side": side, "depth": depth}


TENSOR_2_5D = Procedure(
    reference=tensor_2_5d,
    examples=tensor_2_5d_examples,
    paper="arXiv:2105.14500",
    same=same_to_rounding,
)
