"""SUMMA's three products over torch.distributed: broadcasts and reductions in the groups of a row and of a column."""

from __future__ import annotations

from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Peers


def times(a: Tensor, b: Tensor, column: Peers, row: Peers) -> Tensor:
    """This rank's block of A B; `row` are the ranks of its row, `column` those of its column."""
    out = a.new_zeros((a.shape[0], b.shape[1]))
    for step in range(row.size):
        out.addmm_(row.broadcast(a, step), column.broadcast(b, step))
    return out


def times_transposed(a: Tensor, b: Tensor, column: Peers, row: Peers) -> Tensor:
    """This rank's block of A B'."""
    out = a
    for step in range(row.size):
        total = row.reduce(a @ column.broadcast(b, step).T, step)
        out = total if row.rank == step else out
    return out


def transposed_times(a: Tensor, b: Tensor, column: Peers, row: Peers) -> Tensor:
    """This rank's block of A' B."""
    out = b
    for step in range(row.size):
        total = column.reduce(row.broadcast(a, step).T @ b, step)
        out = total if column.rank == step else out
    return out
