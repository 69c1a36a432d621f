"""What only rotary embeddings have."""

import numpy as np
import pytest

from llmlab.harness.arrays import convert, to_numpy
from llmlab.kernels.twin import twins_of
from llmlab.reference.positions.rope import ROPE, inverse_frequencies, rope
from llmlab.reference.positions.rope_llama3 import llama3_frequencies

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 16))
POSITIONS = np.array([[0, 1, 2], [7, 8, 9]])


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_only(interleaved):
    q, k = RNG.standard_normal((1, 1, 1, 16)), RNG.standard_normal((1, 1, 1, 16))

    def score(query_position, key_position):
        turned = (rope(a, np.array([[p]]), interleaved=interleaved) for a, p in ((q, query_position), (k, key_position)))
        return np.vdot(*turned)

    assert score(5, 2) == pytest.approx(score(1005, 1002), rel=1e-11)
    assert score(5, 2) != pytest.approx(score(5, 3), rel=1e-3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_keeps_lengths_and_position_zero(interleaved):
    out = rope(X, POSITIONS, interleaved=interleaved)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(X, axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(out[0, 0], X[0, 0])


def test_the_two_conventions_differ_by_a_permutation_of_columns():
    halves_of_interleaved = np.r_[0:16:2, 1:16:2]
    permuted = rope(X[..., halves_of_interleaved], POSITIONS)
    np.testing.assert_allclose(rope(X, POSITIONS, interleaved=True)[..., halves_of_interleaved], permuted, rtol=1e-14)


def test_turning_on_from_a_position_adds_positions():
    twice = rope(rope(X, POSITIONS), np.full_like(POSITIONS, 5))
    np.testing.assert_allclose(twice, rope(X, POSITIONS + 5), atol=1e-13)


def test_given_frequencies_replace_theta():
    frequencies = inverse_frequencies(16, 500000.0)
    np.testing.assert_array_equal(rope(X, POSITIONS, frequencies=frequencies), rope(X, POSITIONS, theta=500000.0))
    with pytest.raises(ValueError, match="7 frequencies do not make H=16"):
        rope(X, POSITIONS, frequencies=frequencies[:7])


def test_odd_heads_and_negative_bases_are_refused():
    with pytest.raises(ValueError, match="head_width=5"):
        rope(np.ones((1, 1, 1, 5)), np.zeros((1, 1), int))
    with pytest.raises(ValueError, match="theta=-1"):
        inverse_frequencies(4, -1.0)


@pytest.mark.parametrize("twin", [pytest.param(t, id=t.label) for t in twins_of(ROPE) if t.of == "reference"])
def test_far_positions_keep_float32_accuracy_and_own_frequencies(twin):
    """At a million a float32 angle is wrong by 0.06 radians; the twins form it in float64."""
    positions, frequencies = np.array([[1_000_003, 131_071, 0]]), llama3_frequencies(16)
    x = X[:1].astype(np.float32)
    exact = rope(x.astype(np.float64), positions, frequencies=frequencies)
    given = convert({"x": x, "positions": positions}, twin.backend, "float32")
    (own,) = convert({"frequencies": frequencies}, twin.backend, "float64")
    result = to_numpy(twin.function(*given, frequencies=own))
    assert np.abs(result - exact).max() < 1e-6
