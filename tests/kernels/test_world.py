"""Laws of the processes behind the twins over torch.distributed."""

import pytest

pytest.importorskip("torch")

from llmlab.kernels.parallel import _world


def size_and_rank(number: int) -> tuple[int, int, int]:
    import torch.distributed as dist

    return dist.get_world_size(), dist.get_rank(), number


def one_fails(fails: bool) -> None:
    import torch.distributed as dist

    if fails:
        raise ArithmeticError("this rank gives up")
    dist.barrier()


def test_each_run_has_a_group_of_its_own_size():
    for ranks in (2, 4, 1, 4):
        numbers = _world.run(size_and_rank, [{"number": 10 * rank} for rank in range(ranks)])
        assert numbers == [(ranks, rank, 10 * rank) for rank in range(ranks)]


def test_one_failing_rank_frees_the_others_and_the_next_run_works():
    with pytest.raises(RuntimeError, match="this rank gives up"):
        _world.run(one_fails, [{"fails": rank == 1} for rank in range(2)])
    assert _world.run(size_and_rank, [{"number": 0}]) == [(1, 0, 0)]


def test_too_many_ranks_are_refused():
    with pytest.raises(ValueError, match="5 ranks"):
        _world.run(size_and_rank, [{"number": 0}] * 5)
