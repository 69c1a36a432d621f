"""What only layers of SUMMA grids promise."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._summa import linear_arguments
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.tensor_2_5d import TENSOR_2_5D, tensor_2_5d
from llmlab.reference.parallel.tensor_2d import tensor_2d

SIZES = {"M": 36, "K": 12, "N": 24}


def sent(algorithm, **options):
    traffic = Traffic()
    algorithm(**linear_arguments(np.random.default_rng(0), **SIZES), **options, traffic=traffic)
    return traffic


@pytest.mark.parametrize(("side", "depth"), [(1, 4), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_it_sends_what_the_closed_form_says(side, depth):
    inputs, weights = 36 * 12, 12 * 24
    expected = 3 * (side - 1) * (inputs + depth * weights) + 2 * (depth - 1) * weights
    assert sent(tensor_2_5d, side=side, depth=depth).total_bytes == expected * 8


def test_depth_one_is_two_dimensional():
    assert sent(tensor_2_5d, side=3, depth=1) == sent(tensor_2d, side=3)


def test_side_one_is_data_parallel():
    """Each rank has its rows and the whole weight: nothing is sent but the all-reduce of its gradient."""
    traffic = sent(tensor_2_5d, side=1, depth=4)
    assert traffic.total_bytes == 2 * 3 * 12 * 24 * 8
    assert traffic.rounds == 6


def test_layers_of_four_send_less_than_one_grid_of_sixteen_where_activations_are_large():
    def total(**options):
        traffic = Traffic()
        algorithm = tensor_2_5d if "depth" in options else tensor_2d
        algorithm(**linear_arguments(np.random.default_rng(0), M=256, K=8, N=8), **options, traffic=traffic)
        return traffic.total_bytes

    assert total(side=2, depth=4) < total(side=4)


@pytest.mark.parametrize(("side", "depth"), [(1, 3), (2, 2), (3, 2)])
def test_it_equals_the_products_of_whole_matrices(side, depth):
    drawn = linear_arguments(np.random.default_rng(1), **SIZES)
    x, weight, dout = drawn.values()
    expected = {"out": x @ weight, "dx": dout @ weight.T, "dweight": x.T @ dout}
    assert same_to_rounding(expected, tensor_2_5d(**drawn, side=side, depth=depth))


def test_a_wrong_result_is_refused():
    right = TENSOR_2_5D.reference(**TENSOR_2_5D.examples(np.random.default_rng(2)))
    assert not TENSOR_2_5D.same(right, {**right, "dweight": right["dweight"] * 1.001})


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="rows=36 is not a multiple of 10"):
        tensor_2_5d(**linear_arguments(np.random.default_rng(0), **SIZES), side=2, depth=5)
