"""What only the fused residual addition and normalization has."""

import numpy as np
import pytest

from llmlab.reference.layers.add_rms_norm import add_rms_norm, add_rms_norm_cost
from llmlab.reference.layers.rms_norm import rms_norm, rms_norm_cost


def test_fusing_the_residual_equals_two_layers_and_moves_less():
    rng = np.random.default_rng(4)
    x, residual, weight = rng.standard_normal((2, 3, 16)), rng.standard_normal((2, 3, 16)), rng.standard_normal(16)
    normed, stream = add_rms_norm(x, residual, weight)
    np.testing.assert_array_equal(stream, residual + x)
    np.testing.assert_array_equal(normed, rms_norm(residual + x, weight))
    d = {"B": 1, "T": 8192, "D": 4096}
    addition_alone = 3 * d["B"] * d["T"] * d["D"]
    fused, apart = add_rms_norm_cost(d).moved_bytes(2), rms_norm_cost(d).moved_bytes(2) + 2 * addition_alone
    assert fused / apart == pytest.approx(4 / 5, rel=1e-3)
