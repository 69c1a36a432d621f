"""The groups of a mesh that the twins over torch.distributed run on."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from llmlab.kernels.parallel._peers_torch import on_mesh  # noqa: E402


def test_peers_of_an_axis_are_the_ranks_that_differ_along_it():
    def program(rows, columns):
        place = torch.tensor([10 * rows.rank + columns.rank])
        return rows.all_gather(place).tolist(), columns.all_gather(place).tolist()

    assert on_mesh((2, 3), program)[4] == ([1, 11], [10, 11, 12])


def test_a_rank_that_fails_ends_the_run_with_its_error():
    def program(peers):
        if peers.rank == 1:
            raise ValueError("no such expert")
        return peers.all_reduce(torch.ones(3))

    with pytest.raises(RuntimeError, match="rank 1 failed: no such expert"):
        on_mesh((3,), program)


def test_rows_of_unequal_number_are_exchanged():
    def program(peers):
        rows = torch.full((3, 2), float(peers.rank))
        give = [1, 2] if peers.rank == 0 else [3, 0]
        take = [1, 3] if peers.rank == 0 else [2, 0]
        return peers.all_to_all(rows, give, take)[:, 0].tolist()

    assert on_mesh((2,), program) == [[0, 1, 1, 1], [0, 0]]


def test_broadcast_and_reduce_follow_their_root():
    def program(peers):
        mine = torch.tensor([peers.rank + 1.0])
        total = peers.reduce(mine, 1).item()  # every rank takes part; only the root's result means anything
        return peers.broadcast(mine, 2).item(), total if peers.rank == 1 else None

    assert on_mesh((3,), program) == [(3, None), (3, 6), (3, None)]
