"""Layers of SUMMA grids over torch.distributed: rows cut over depth and grid, weight gradients all-reduced over the depth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Peers, on_mesh
from llmlab.kernels.parallel._summa_torch import times, times_transposed, transposed_times
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._summa import blocks_of, joined
from llmlab.reference.parallel.tensor_2_5d import TENSOR_2_5D


@twin(TENSOR_2_5D, backend="torch", dtypes=("float64",))
def tensor_2_5d(
    *, x_MK: np.ndarray, weight_KN: np.ndarray, dout_MN: np.ndarray, side: int, depth: int, traffic: object = None
) -> dict[str, np.ndarray]:
    rows = depth * side
    x_blocks, dout_blocks, weights = (
        blocks_of(x_MK, rows, side),
        blocks_of(dout_MN, rows, side),
        blocks_of(weight_KN, side, side),
    )

    def program(layers: Peers, column: Peers, row: Peers) -> tuple[Tensor, ...]:
        block = column.rank * side + row.rank
        x, dout = (torch.tensor(blocks[layers.rank * side * side + block]) for blocks in (x_blocks, dout_blocks))
        weight, grids = torch.tensor(weights[block]), (column, row)
        dweight = layers.all_reduce(transposed_times(x, dout, *grids))
        return times(x, weight, *grids), times_transposed(dout, weight, *grids), dweight

    out, dx, dweight = ([part.numpy() for part in parts] for parts in zip(*on_mesh((depth, side, side), program)))
    return {"out": joined(out, rows, side), "dx": joined(dx, rows, side), "dweight": joined(dweight[: side * side], side, side)}
