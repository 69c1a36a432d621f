"""SUMMA: products of matrices cut into q x q blocks, by broadcasts and reductions along rows and columns of a grid.

Van de Geijn and Watts 1997, doi:10.1002/(SICI)1096-9128(199704)9:4<255::AID-CPE250>3.0.CO;2-2; the transposed forms are
those of Optimus (Xu et al. 2021, arXiv:2104.05343, section 3). The mesh is depth x q x q, row-major; every layer of the depth
works by itself, at the same time. Each step is two collectives of a block in a group of q: with a and b elements on a whole
layer, all ranks of it send (q - 1) (a + b) elements in q steps of 2 ceil(log2 q) rounds.

Axes: M rows of the input, K inner, N columns of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.reference.parallel._exchange import Parts, broadcast, lines, reduce
from llmlab.reference.parallel._traffic import Traffic


def require_grid(shape: Sequence[int], sizes: dict[str, tuple[int, int]]) -> None:
    """Refuse meshes without ranks, and sizes that do not divide by the parts they are cut into.

    Raises:
        ValueError: names the first such size.
    """
    if min(shape) < 1:
        raise ValueError(f"mesh={tuple(shape)} has no ranks")
    for name, (size, parts) in sizes.items():
        if size % parts:
            raise ValueError(f"{name}={size} is not a multiple of {parts} parts")


def blocks_of(matrix: np.ndarray, rows: int, columns: int) -> Parts:
    """Cut a matrix into blocks, row-major."""
    return [block for row in np.split(matrix, rows) for block in np.split(row, columns, axis=1)]


def joined(blocks: Parts, rows: int, columns: int) -> np.ndarray:
    """The inverse of `blocks_of`."""
    return np.block([blocks[row * columns : (row + 1) * columns] for row in range(rows)])


def times(a: Parts, b: Parts, shape: tuple[int, int, int], traffic: Traffic) -> Parts:
    """Return C = A B: in step l, A's column l goes along the rows and B's row l along the columns."""
    along_row, along_column = lines(shape, 2), lines(shape, 1)
    out: Parts = []
    for step in range(shape[1]):
        left = broadcast(a, traffic, root=step, groups=along_row)
        right = broadcast(b, traffic, root=step, groups=along_column)
        products = [one @ other for one, other in zip(left, right)]
        out = [total + product for total, product in zip(out, products)] if out else products
    return out


def times_transposed(a: Parts, b: Parts, shape: tuple[int, int, int], traffic: Traffic) -> Parts:
    """Return C = A B': in step l, B's row l goes along the columns and the products are summed into column l of C."""
    along_row, along_column = lines(shape, 2), lines(shape, 1)
    out = list(a)
    for step in range(shape[1]):
        right = broadcast(b, traffic, root=step, groups=along_column)
        summed = reduce([one @ other.T for one, other in zip(a, right)], traffic, root=step, groups=along_row)
        for row in along_row:
            out[row[step]] = summed[row[step]]
    return out


def transposed_times(a: Parts, b: Parts, shape: tuple[int, int, int], traffic: Traffic) -> Parts:
    """Return C = A' B: in step l, A's column l goes along the rows and the products are summed into row l of C."""
    along_row, along_column = lines(shape, 2), lines(shape, 1)
    out = list(b)
    for step in range(shape[1]):
        left = broadcast(a, traffic, root=step, groups=along_row)
        summed = reduce([one.T @ other for one, other in zip(left, b)], traffic, root=step, groups=along_column)
        for column in along_column:
            out[column[step]] = summed[column[step]]
    return out


def linear_arguments(rng: np.random.Generator, *, M: int, K: int, N: int) -> dict[str, np.ndarray]:
    """Draw the arrays of one linear layer."""
    shapes = {"x_MK": (M, K), "weight_KN": (K, N), "dout_MN": (M, N)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}
