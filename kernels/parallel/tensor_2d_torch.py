"""SUMMA on a square grid over torch.distributed: a rank holds one block of the input, the weight and the gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Peers, on_mesh
from llmlab.kernels.parallel._summa_torch import times, times_transposed, transposed_times
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._summa import blocks_of, joined
from llmlab.reference.parallel.tensor_2d import TENSOR_2D


@twin(TENSOR_2D, backend="torch", dtypes=("float64",))
def tensor_2d(
    *, x_MK: np.ndarray, weight_KN: np.ndarray, dout_MN: np.ndarray, side: int, traffic: object = None
) -> dict[str, np.ndarray]:
    blocks = [blocks_of(whole, side, side) for whole in (x_MK, weight_KN, dout_MN)]

    def program(column: Peers, row: Peers) -> tuple[Tensor, ...]:
        x, weight, dout = (torch.tensor(block[column.rank * side + row.rank]) for block in blocks)
        grids = (column, row)
        return times(x, weight, *grids), times_transposed(dout, weight, *grids), transposed_times(x, dout, *grids)

    found = zip(("out", "dx", "dweight"), zip(*on_mesh((side, side), program)))
    return {name: joined([part.numpy() for part in parts], side, side) for name, parts in found}
