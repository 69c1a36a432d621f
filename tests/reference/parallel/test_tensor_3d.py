"""What only products on a cube promise."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._summa import linear_arguments
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.tensor_2d import tensor_2d
from llmlab.reference.parallel.tensor_3d import TENSOR_3D, collected, scattered, tensor_3d


@pytest.mark.parametrize("side", [1, 2, 3])
def test_it_sends_what_the_closed_form_says_and_every_rank_the_same(side):
    traffic = Traffic()
    tensor_3d(**linear_arguments(np.random.default_rng(0), M=36, K=72, N=6), side=side, traffic=traffic)
    expected = (side - 1) * (3 * 36 * 72 + 3 * 72 * 6 + 2 * 36 * 6) * 8
    assert traffic.total_bytes == expected
    assert traffic.rounds == 8 * (side - 1)
    assert {traffic.bytes_sent_by(rank) for rank in range(side**3)} == {expected // side**3}


def test_a_cube_of_64_sends_less_than_a_grid_of_64():
    cube, grid = Traffic(), Traffic()
    drawn = linear_arguments(np.random.default_rng(0), M=64, K=64, N=64)
    tensor_3d(**drawn, side=4, traffic=cube)
    tensor_2d(**drawn, side=8, traffic=grid)
    assert cube.total_bytes < grid.total_bytes


@pytest.mark.parametrize("side", [1, 2, 3])
def test_it_equals_the_products_of_whole_matrices(side):
    drawn = linear_arguments(np.random.default_rng(1), M=36, K=36, N=6)
    x, weight, dout = drawn.values()
    expected = {"out": x @ weight, "dx": dout @ weight.T, "dweight": x.T @ dout}
    assert same_to_rounding(expected, tensor_3d(**drawn, side=side))


def test_the_output_of_a_layer_lies_as_the_input_of_the_next_with_two_axes_exchanged():
    matrix = np.arange(32.0).reshape(8, 4)
    ranks = {place: number for number, place in enumerate(np.ndindex(2, 2, 2))}
    as_input, as_output = scattered(matrix, 2, 0, 1, 2), scattered(matrix, 2, 0, 2, 1)
    assert all(np.array_equal(as_input[ranks[i, j, k]], as_output[ranks[i, k, j]]) for i, j, k in ranks)
    assert np.array_equal(collected(as_output, 2, 0, 2, 1), matrix)


def test_a_wrong_result_is_refused():
    right = TENSOR_3D.reference(**TENSOR_3D.examples(np.random.default_rng(2)))
    assert not TENSOR_3D.same(right, {**right, "dx": right["dx"] * 1.001})


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="inner width=6 is not a multiple of 4"):
        tensor_3d(**linear_arguments(np.random.default_rng(0), M=4, K=6, N=2), side=2)
