"""What only position interpolation has."""

import numpy as np
import pytest

from llmlab.reference.positions.rope import rope
from llmlab.reference.positions.rope_linear import linear_scaling, rope_linear


def test_stretched_positions_are_fractions_of_trained_ones():
    x = np.random.default_rng(0).standard_normal((1, 9, 2, 8))
    positions = np.arange(9)[None]
    np.testing.assert_allclose(rope_linear(x, positions, factor=8.0), rope(x, positions / 8), rtol=1e-10)


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match=r"factor=0.5: must be at least 1"):
        linear_scaling(8, factor=0.5)


@pytest.mark.parametrize("head_width", [64, 96, 128])
def test_frequencies_equal_transformers_to_float32(head_width):
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.positions._scaled import transformers_scaling

    theirs, factor = transformers_scaling("linear", head_width, context=8192, rope_theta=10000.0, factor=4.0)
    ours, own_factor = linear_scaling(head_width)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)
    assert factor == own_factor == 1.0
