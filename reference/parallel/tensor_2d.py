"""Two-dimensional tensor parallelism: SUMMA on a q x q grid (Optimus, Xu et al. 2021, arXiv:2104.05343).

Activations, weights and gradients are all cut into q x q blocks, so each of p = q^2 ranks holds 1/p of everything and no
activation is repeated, as it is under one-dimensional parallelism. The product and its two gradients are closed under SUMMA's
three forms: C = A B forwards, dA = dC B' and dB = A' dC backwards. Over all ranks,

    forward   (q - 1) (M K + K N) elements in q steps
    backward  (q - 1) (2 K N + 2 M K) elements in 2 q steps

of a broadcast and a second broadcast or reduction, ceil(log2 q) rounds each.

Axes: M rows (batch times positions), K inner width, N output width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.parallel._exchange import same_to_rounding
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


def tensor_2d(
    *, x_MK: np.ndarray, weight_KN: np.ndarray, dout_MN: np.ndarray, side: int, traffic: Traffic | None = None
) -> dict[str, np.ndarray]:
    """Run a linear layer forwards and backwards on a side x side grid; return out, dx and dweight.

        out = x W,   dx = dout W',   dW = x' dout

    Raises:
        ValueError: a size does not divide by the side.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> result = tensor_2d(**linear_arguments(rng, M=4, K=6, N=2), side=2, traffic=traffic)
    >>> traffic.total_bytes == 3 * (2 - 1) * (4 * 6 + 6 * 2) * 8, traffic.rounds
    (True, 12)
    """
    traffic = Traffic() if traffic is None else traffic
    (M, K), N = x_MK.shape, weight_KN.shape[1]
    require_grid((side,), {"rows": (M, side), "inner width": (K, side), "output width": (N, side)})
    shape = (1, side, side)
    x, weight, dout = (blocks_of(whole, side, side) for whole in (x_MK, weight_KN, dout_MN))
    found = {
        "out": times(x, weight, shape, traffic),
        "dx": times_transposed(dout, weight, shape, traffic),
        "dweight": transposed_times(x, dout, shape, traffic),
    }
    return {name: joined(parts, side, side) for name, parts in found.items()}


def tensor_2d_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small layer on a grid of side 1 to 3."""
    side = int(rng.integers(1, 4))
    M, K, N = (side * int(times) for times in rng.integers(1, 5, 3))
    return {**linear_arguments(rng, M=M, K=K, N=N), "side": side}


TENSOR_2D = Procedure(
    reference=tensor_2d,
    examples=tensor_2d_examples,
    paper="arXiv:2104.05343",
    same=same_to_rounding,
)
