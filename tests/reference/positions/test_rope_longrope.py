"""What only LongRoPE has."""

import numpy as np
import pytest

from llmlab.reference.positions.rope import rope
from llmlab.reference.positions.rope_longrope import longrope_scaling, rope_longrope

SHORT, LONG = np.linspace(1, 2, 48).tolist(), np.linspace(1, 60, 48).tolist()


@pytest.mark.parametrize("length", [1, 4096, 4097, 131072])
@pytest.mark.parametrize("given", [{}, {"factor": 8.0}, {"factor": 1.0}, {"attention_factor": 1.25}])
def test_scaling_equals_transformers(length, given):
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.positions._scaled import transformers_scaling

    same = {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 4096, **given}
    frequencies, attention_factor = transformers_scaling(
        "longrope", 96, context=131072, length=length, rope_theta=10000.0, **same
    )
    ours, own_factor = longrope_scaling(96, length=length, max_position_embeddings=131072, **same)
    np.testing.assert_allclose(frequencies, ours, rtol=1e-5)
    assert attention_factor == pytest.approx(own_factor, rel=1e-12)


def test_the_first_tokens_keep_their_angles():
    x = np.random.default_rng(0).standard_normal((1, 8, 2, 6))
    positions, factors = np.arange(8)[None], np.array([2.0, 3.0, 5.0])
    out = rope_longrope(x, positions, factors, first_scaled=4)
    np.testing.assert_array_equal(out[:, :4], rope(x, positions)[:, :4])
    np.testing.assert_array_equal(out[:, 4:], rope_longrope(x, positions, factors)[:, 4:])


def test_equal_factors_are_position_interpolation():
    x = np.random.default_rng(0).standard_normal((1, 5, 1, 4))
    positions = np.arange(5)[None]
    np.testing.assert_allclose(rope_longrope(x, positions, np.full(2, 4.0)), rope(x, positions / 4), rtol=1e-12)


def test_wrong_factors_are_refused():
    x, positions = np.ones((1, 1, 1, 4)), np.zeros((1, 1), int)
    with pytest.raises(ValueError, match="3 factors for H=4"):
        rope_longrope(x, positions, np.ones(3))
    with pytest.raises(ValueError, match=r"factor=-1.0: must be above 0"):
        rope_longrope(x, positions, np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="the attention factor needs one of them"):
        longrope_scaling(4, length=1, short_factor=[1, 1], long_factor=[1, 1], original_max_position_embeddings=8)
