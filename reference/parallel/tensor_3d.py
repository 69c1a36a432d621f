"""Three-dimensional tensor parallelism: matrix products on a cube (Bian et al. 2021, arXiv:2105.14450).

p = l^3 ranks at (i, j, k). The product of block (i, k) of the input and block (k, j) of the weight belongs to rank (i, j, k);
it holds 1/l of the rows of each (Agarwal et al. 1995, doi:10.1147/rd.395.0575), so every rank holds 1/p of everything:

    x       rows i.j, columns k     gathered along j before use
    weight  rows k.i, columns j     gathered along i
    out     rows i.k, columns j     products summed and scattered along k

The output lies as an input does with j and k exchanged, so layers alternate the two. Backwards dx and dweight are scattered
where x and weight were gathered. Over all ranks, and per rank 1/p of it,

    forward   (l - 1) (M K + K N + M N) elements in 3 (l - 1) rounds
    backward  (l - 1) (2 M K + 2 K N + M N) in 5 (l - 1), weight and input gathered again rather than kept

Axes: M rows (batch times positions), K inner width, N output width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.parallel._exchange import Parts, all_gather, lines, reduce_scatter, same_to_rounding
from llmlab.reference.parallel._summa import linear_arguments, require_grid
from llmlab.reference.parallel._traffic import Traffic


def scattered(matrix: np.ndarray, side: int, row: int, within: int, column: int) -> Parts:
    """Give every rank of the cube its piece: block row by axis `row`, part of it by axis `within`, columns by axis `column`."""
    rows, columns = matrix.shape[0] // side**2, matrix.shape[1] // side
    parts = []
    for place in np.ndindex(side, side, side):
        first = (place[row] * side + place[within]) * rows
        parts.append(matrix[first : first + rows, place[column] * columns : (place[column] + 1) * columns])
    return parts


def collected(parts: Parts, side: int, row: int, within: int, column: int) -> np.ndarray:
    """The inverse of `scattered`."""
    grid: list[list[np.ndarray]] = [[parts[0]] * side for _ in range(side * side)]
    for place, part in zip(np.ndindex(side, side, side), parts):
        grid[place[row] * side + place[within]][place[column]] = part
    return np.block(grid)


def tensor_3d(
    *, x_MK: np.ndarray, weight_KN: np.ndarray, dout_MN: np.ndarray, side: int, traffic: Traffic | None = None
) -> dict[str, np.ndarray]:
    """Run a linear layer forwards and backwards on a cube of that side; return out, dx and dweight.

        out = x W,   dx = dout W',   dW = x' dout

    Raises:
        ValueError: rows or inner width do not divide by the square of the side, or the output width by the side.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> result = tensor_3d(**linear_arguments(rng, M=4, K=8, N=2), side=2, traffic=traffic)
    >>> traffic.total_bytes == (2 - 1) * (3 * 4 * 8 + 3 * 8 * 2 + 2 * 4 * 2) * 8, traffic.rounds
    (True, 8)
    """
    traffic = Traffic() if traffic is None else traffic
    (M, K), N = x_MK.shape, weight_KN.shape[1]
    require_grid((side,), {"rows": (M, side**2), "inner width": (K, side**2), "output width": (N, side)})
    along_i, along_j, along_k = (lines((side,) * 3, axis) for axis in range(3))
    i, j, k = range(3)
    x, weight = scattered(x_MK, side, i, j, k), scattered(weight_KN, side, k, i, j)

    whole_x = all_gather(x, traffic, groups=along_j)
    whole_weight = all_gather(weight, traffic, groups=along_i)
    out = reduce_scatter([a @ b for a, b in zip(whole_x, whole_weight)], traffic, groups=along_k)

    dout = all_gather(scattered(dout_MN, side, i, k, j), traffic, groups=along_k)
    whole_weight = all_gather(weight, traffic, groups=along_i)
    dx = reduce_scatter([d @ b.T for d, b in zip(dout, whole_weight)], traffic, groups=along_j)
    whole_x = all_gather(x, traffic, groups=along_j)
    dweight = reduce_scatter([a.T @ d for a, d in zip(whole_x, dout)], traffic, groups=along_i)
    return {
        "out": collected(out, side, i, k, j),
        "dx": collected(dx, side, i, j, k),
        "dweight": collected(dweight, side, k, i, j),
    }


def tensor_3d_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small layer on a cube of side 1 or 2."""
    side = int(rng.integers(1, 3))
    M, K = (side**2 * int(times) for times in rng.integers(1, 4, 2))
    return {**linear_arguments(rng, M=M, K=K, N=side * int(rng.integers(1, 5))), "side": side}


TENSOR_3D = Procedure(
    reference=tensor_3d,
    examples=tensor_3d_examples,
    paper="arXiv:2105.14450",
    same=same_to_rounding,
)
