"""What only NTK scaling has."""

import numpy as np
import pytest

from llmlab.reference.positions.rope import inverse_frequencies
from llmlab.reference.positions.rope_ntk import dynamic_ntk_scaling, ntk_scaling, rope_ntk


def test_the_fastest_pair_is_kept_and_the_slowest_interpolated():
    plain, scaled = inverse_frequencies(128), ntk_scaling(128, factor=8.0)[0]
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 8, rel=1e-12)
    assert (np.diff(plain / scaled) > 0).all()


def test_dynamic_scaling_starts_where_the_trained_context_ends():
    sizes = {"max_position_embeddings": 2048, "factor": 4.0}
    at_end = dynamic_ntk_scaling(64, length=2048, **sizes)[0]
    np.testing.assert_array_equal(at_end, inverse_frequencies(64))
    beyond = dynamic_ntk_scaling(64, length=2049, **sizes)[0]
    assert (at_end - beyond)[1:].min() > 0
    assert (at_end / beyond).max() < 1.01


def test_the_paper_s_dynamic_rule_is_the_released_one_with_factor_one():
    """Section 3.3: s = max(1, length / context)."""
    released = dynamic_ntk_scaling(64, length=6144, max_position_embeddings=2048, factor=1.0)[0]
    np.testing.assert_allclose(released, ntk_scaling(64, factor=3.0)[0], rtol=1e-13)


@pytest.mark.parametrize("length", [1000, 2048, 2049, 5000, 60000])
def test_dynamic_frequencies_equal_transformers_to_float32(length):
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.positions._scaled import transformers_scaling

    theirs, _ = transformers_scaling("dynamic", 128, context=2048, length=length, rope_theta=10000.0, factor=4.0)
    np.testing.assert_allclose(theirs, dynamic_ntk_scaling(128, length=length, max_position_embeddings=2048)[0], rtol=1e-5)


def test_keys_rotated_before_the_text_outgrew_its_context_do_not_fit_later_ones():
    x = np.random.default_rng(0).standard_normal((1, 3, 1, 8))
    early = rope_ntk(x, np.array([[5, 6, 7]]), max_position_embeddings=8)
    late = rope_ntk(x, np.array([[5, 6, 15]]), max_position_embeddings=8)
    assert np.abs(early[:, :2] - late[:, :2]).max() > 0.1


def test_one_pair_is_refused():
    with pytest.raises(ValueError, match="head_width=2"):
        ntk_scaling(2)
