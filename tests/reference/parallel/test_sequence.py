"""What only sequence-parallel regions promise."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.sequence import SEQUENCE, sequence, sequence_arguments
from llmlab.reference.parallel.tensor_1d import tensor_1d, tensor_1d_arguments

SIZES = {"B": 2, "T": 8, "D": 5, "N": 4, "H": 2, "F": 12}


def drawn(seed=0, ranks=2, **more):
    return {**sequence_arguments(np.random.default_rng(seed), **SIZES), "keep_fraction": 0.9, "num_ranks": ranks, **more}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_sends_what_tensor_parallelism_sends_and_the_gradients_held_whole(ranks):
    ours, theirs = Traffic(), Traffic()
    sequence(**drawn(ranks=ranks), traffic=ours)
    tensor_1d(**tensor_1d_arguments(np.random.default_rng(0), **SIZES), num_ranks=ranks, traffic=theirs)
    assert ours.total_bytes - theirs.total_bytes == 2 * (ranks - 1) * 5 * 5 * 8


def test_gathering_again_backwards_costs_two_all_gathers_and_changes_nothing():
    kept, again = Traffic(), Traffic()
    one = sequence(**drawn(ranks=4), traffic=kept)
    other = sequence(**drawn(ranks=4), store_gathered=False, traffic=again)
    assert again.total_bytes - kept.total_bytes == 2 * 3 * 2 * 8 * 5 * 8
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_any_number_of_ranks_gives_what_one_gives():
    assert same_to_rounding(sequence(**drawn(1, 1)), sequence(**drawn(1, 4)))


def test_gradients_are_slopes():
    given, rng = drawn(2), np.random.default_rng(3)
    found = sequence(**given)
    for name in [name for name, value in given.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]:
        if name == "dout_BTD":
            continue
        way = rng.standard_normal(given[name].shape)
        ahead, behind = (
            np.sum(sequence(**{**given, name: given[name] + step * way})["out"] * given["dout_BTD"]) for step in (1e-5, -1e-5)
        )
        assert (ahead - behind) / 2e-5 == pytest.approx(np.sum(found[f"d{name.rpartition('_')[0]}"] * way), rel=1e-5, abs=1e-6)


def test_a_wrong_result_is_refused():
    right = sequence(**drawn())
    assert not SEQUENCE.same(right, {**right, "out": right["out"] + 1e-6})


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="positions=8 is not a multiple of 3"):
        sequence(**drawn(ranks=3))
    with pytest.raises(ValueError, match="keep_fraction=0"):
        sequence(**{**drawn(), "keep_fraction": 0.0})
