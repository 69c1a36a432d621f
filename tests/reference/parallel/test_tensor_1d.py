"""What only column- and row-parallel layers promise."""

import numpy as np
import pytest

from llmlab.reference.parallel._exchange import same_to_rounding, split
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.tensor_1d import (
    TENSOR_1D,
    column_linear,
    column_linear_backward,
    row_linear,
    row_linear_backward,
    tensor_1d,
    tensor_1d_arguments,
)

SIZES = {"B": 2, "T": 3, "D": 5, "N": 4, "H": 2, "F": 12}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_block_sends_four_all_reduces_of_its_activation(ranks):
    traffic = Traffic()
    tensor_1d(**tensor_1d_arguments(np.random.default_rng(0), **SIZES), num_ranks=ranks, traffic=traffic)
    assert traffic.total_bytes == 8 * (ranks - 1) * 2 * 3 * 5 * 8
    assert traffic.rounds == 8 * (ranks - 1)


def test_any_number_of_ranks_gives_what_one_gives():
    drawn = tensor_1d_arguments(np.random.default_rng(1), **SIZES)
    assert same_to_rounding(tensor_1d(**drawn, num_ranks=1), tensor_1d(**drawn, num_ranks=4))


def test_gradients_are_slopes():
    rng = np.random.default_rng(2)
    drawn = tensor_1d_arguments(rng, **SIZES)
    found = tensor_1d(**drawn, num_ranks=2)
    for name in ("x_BTD", "qkv_3DNH", "proj_NHD", "up_DF", "up_bias_F", "down_FD", "down_bias_D"):
        way = rng.standard_normal(drawn[name].shape)
        ahead, behind = (
            np.sum(tensor_1d(**{**drawn, name: drawn[name] + step * way}, num_ranks=2)["out"] * drawn["dout_BTD"])
            for step in (1e-5, -1e-5)
        )
        assert (ahead - behind) / 2e-5 == pytest.approx(np.sum(found[f"d{name.rpartition('_')[0]}"] * way), rel=1e-5, abs=1e-6)


def test_a_column_and_a_row_layer_in_turn_need_one_all_reduce_each_way():
    rng, traffic = np.random.default_rng(3), Traffic()
    x, up, down, dout = (rng.standard_normal(shape) for shape in ((6, 4), (4, 8), (8, 3), (6, 3)))
    bias, last = rng.standard_normal(8), rng.standard_normal(3)
    ups, biases, downs = split(up, 2, 1, "F"), split(bias, 2, 0, "F"), split(down, 2, 0, "F")
    hidden = column_linear([x, x], ups, biases)
    assert traffic.total_bytes == 0
    out = row_linear(hidden, downs, last, traffic)
    assert traffic.total_bytes == 2 * out[0].nbytes
    assert same_to_rounding(out[0], (x @ up + bias) @ down + last)
    dhidden, ddowns, dlast = row_linear_backward([dout, dout], hidden, downs)
    dx, dups, dbiases = column_linear_backward(dhidden, [x, x], ups, traffic)
    assert traffic.total_bytes == 2 * (out[0].nbytes + dx[0].nbytes)
    assert same_to_rounding(dx[1], dout @ down.T @ up.T)
    assert same_to_rounding(np.concatenate(dups, 1), x.T @ dout @ down.T)
    assert same_to_rounding(np.concatenate(ddowns), (x @ up + bias).T @ dout)
    assert same_to_rounding([np.concatenate(dbiases), dlast], [(dout @ down.T).sum(0), dout.sum(0)])


def test_a_wrong_result_is_refused():
    drawn = TENSOR_1D.examples(np.random.default_rng(4))
    right = tensor_1d(**drawn)
    assert not TENSOR_1D.same(right, {**right, "dx": right["dx"] * 1.001})


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="heads=4 is not a multiple of 3 ranks"):
        tensor_1d(**tensor_1d_arguments(np.random.default_rng(0), **SIZES), num_ranks=3)
    with pytest.raises(ValueError, match="num_ranks=0"):
        tensor_1d(**tensor_1d_arguments(np.random.default_rng(0), **SIZES), num_ranks=0)


def test_cost_of_all_ranks_is_cost_of_one_without_the_activations():
    sizes = {"B": 2, "T": 8, "D": 16, "N": 4, "H": 4, "F": 64}
    one, four = TENSOR_1D.cost({**sizes, "P": 1}), TENSOR_1D.cost({**sizes, "P": 4})
    assert one.flops == 4 * four.flops
    assert one.flops == 3 * (2 * 16 * (4 * 16 * 16 + 2 * 16 * 64) + 4 * 2 * 8 * 8 * 16)
