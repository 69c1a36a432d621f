"""What only RMS normalization has."""

import numpy as np
import pytest

from llmlab.reference.layers.rms_norm import rms_norm, rms_norm_backward


def test_output_has_root_mean_square_one():
    x = np.random.default_rng(0).standard_normal((2, 3, 64)) * 7
    out = rms_norm(x, np.ones(64), eps=0.0)
    np.testing.assert_allclose(np.sqrt((out**2).mean(-1)), 1, rtol=1e-14)


def test_scaling_the_input_changes_nothing_without_eps():
    x, weight = np.random.default_rng(1).standard_normal((1, 4, 32)), np.random.default_rng(2).standard_normal(32)
    np.testing.assert_allclose(rms_norm(1000 * x, weight, eps=0.0), rms_norm(x, weight, eps=0.0), rtol=1e-13)


def test_gradient_is_orthogonal_to_the_input_without_eps():
    rng = np.random.default_rng(3)
    x, weight, dout = rng.standard_normal((2, 3, 16)), rng.standard_normal(16), rng.standard_normal((2, 3, 16))
    dx, _ = rms_norm_backward(dout, x, weight, eps=0.0)
    np.testing.assert_allclose((dx * x).sum(-1), 0, atol=1e-13)


def test_zeros_stay_zeros():
    assert (rms_norm(np.zeros((1, 1, 8)), np.ones(8)) == 0).all()


def test_a_weight_of_another_width_is_refused():
    with pytest.raises(ValueError, match="broadcast"):
        rms_norm(np.ones((1, 1, 8)), np.ones(7))
