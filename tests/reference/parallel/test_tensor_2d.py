"""What only SUMMA on a square grid promises."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding
from llmlab.reference.parallel._summa import blocks_of, joined, linear_arguments
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.tensor_2d import TENSOR_2D, tensor_2d


@pytest.mark.parametrize(("side", "log"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_each_product_sends_both_matrices_side_less_one_times(side, log):
    traffic = Traffic()
    tensor_2d(**linear_arguments(np.random.default_rng(0), M=12, K=24, N=36), side=side, traffic=traffic)
    assert traffic.total_bytes == 3 * (side - 1) * (12 * 24 + 24 * 36) * 8
    assert traffic.rounds == 3 * side * 2 * log


def test_ranks_talk_only_along_their_row_or_column():
    traffic = Traffic()
    tensor_2d(**linear_arguments(np.random.default_rng(0), M=3, K=3, N=3), side=3, traffic=traffic)
    assert all(a // 3 == b // 3 or a % 3 == b % 3 for a, b in traffic.messages)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_it_equals_the_products_of_whole_matrices(side):
    drawn = linear_arguments(np.random.default_rng(1), M=6, K=12, N=18)
    x, weight, dout = drawn.values()
    expected = {"out": x @ weight, "dx": dout @ weight.T, "dweight": x.T @ dout}
    assert same_to_rounding(expected, tensor_2d(**drawn, side=side))


def test_blocks_join_to_what_they_were_cut_from():
    matrix = np.arange(24.0).reshape(4, 6)
    assert np.array_equal(joined(blocks_of(matrix, 2, 3), 2, 3), matrix)


def test_a_wrong_result_is_refused():
    right = TENSOR_2D.reference(**TENSOR_2D.examples(np.random.default_rng(2)))
    assert not TENSOR_2D.same(right, {**right, "dx": right["dx"] * 1.001})


def test_sizes_that_do_not_divide_are_named():
    drawn = linear_arguments(np.random.default_rng(0), M=4, K=6, N=8)
    with pytest.raises(ValueError, match="inner width=6 is not a multiple of 4"):
        tensor_2d(**drawn, side=4)
    with pytest.raises(ValueError, match="no ranks"):
        tensor_2d(**drawn, side=0)
