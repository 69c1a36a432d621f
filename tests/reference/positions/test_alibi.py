"""What only linear biases have."""

import numpy as np
import pytest

from llmlab.reference.layers.softmax import softmax
from llmlab.reference.positions.alibi import alibi, alibi_slopes


def test_slopes_of_a_power_of_two_are_a_geometric_sequence_ending_at_2_to_the_minus_8():
    for heads in (1, 2, 4, 16, 64):
        slopes = alibi_slopes(heads)
        np.testing.assert_allclose(slopes, slopes[0] ** np.arange(1, heads + 1), rtol=1e-12)
        assert slopes[-1] == 2.0**-8


def test_slopes_of_other_counts_are_distinct_and_extend_the_power_of_two_below():
    slopes = alibi_slopes(12)
    np.testing.assert_array_equal(slopes[:8], alibi_slopes(8))
    np.testing.assert_array_equal(slopes[8:], alibi_slopes(16)[0:8:2])
    assert len(set(slopes)) == 12


def test_no_head_is_refused():
    with pytest.raises(ValueError, match="num_heads=0"):
        alibi_slopes(0)


def test_a_query_does_not_bias_itself_and_a_decode_step_is_the_last_row():
    full = alibi(np.zeros((1, 4, 6, 6)))
    assert (np.diagonal(full, axis1=2, axis2=3) == 0).all()
    np.testing.assert_array_equal(alibi(np.zeros((1, 4, 1, 6)))[:, :, 0], full[:, :, -1])


def test_measuring_from_key_zero_gives_the_same_weights():
    scores = np.random.default_rng(0).standard_normal((2, 4, 3, 7))
    from_zero = scores + alibi_slopes(4)[:, None, None] * np.arange(7)
    np.testing.assert_allclose(softmax(alibi(scores)), softmax(from_zero), rtol=1e-12)
