"""What only layer normalization has."""

import numpy as np

from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.layers.rms_norm import rms_norm


def test_output_has_mean_zero_and_variance_one():
    x = np.random.default_rng(0).standard_normal((2, 3, 64)) * 5 + 100
    out = layer_norm(x, np.ones(64), np.zeros(64), eps=0.0)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(-1), 1, rtol=1e-12)


def test_it_is_rms_norm_of_the_centred_input():
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((2, 3, 16)), rng.standard_normal(16)
    centred = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(layer_norm(x, weight, np.zeros(16), eps=1e-6), rms_norm(centred, weight, eps=1e-6), rtol=1e-12)


def test_a_large_common_offset_does_not_cancel_the_variance():
    """A difference of moments would lose all digits in float32: 1e4 squared times 2**-24 exceeds the variance."""
    x = (1e4 + np.random.default_rng(2).standard_normal((1, 1, 256))).astype(np.float32)
    exact = layer_norm(x.astype(np.float64), np.ones(256), np.zeros(256))
    out = layer_norm(x, np.ones(256, np.float32), np.zeros(256, np.float32))
    assert np.abs(out - exact).max() < 5e-3
