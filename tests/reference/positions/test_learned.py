"""What only learned positions have."""

import numpy as np
import pytest

from llmlab.reference.positions.learned import learned, learned_backward


def test_there_is_no_answer_beyond_the_table():
    with pytest.raises(ValueError, match=r"id=4: not in 0\.\.3"):
        learned(np.zeros((1, 2, 3)), np.array([[0, 4]]), np.ones((4, 3)))


def test_an_unused_position_learns_nothing_and_a_shared_one_sums():
    dout = np.random.default_rng(0).standard_normal((2, 3, 4))
    positions = np.array([[0, 1, 2], [0, 0, 2]])
    _, _, dweight = learned_backward(dout, dout, positions, np.zeros((5, 4)))
    np.testing.assert_allclose(dweight[0], dout[0, 0] + dout[1, 0] + dout[1, 1], rtol=1e-15)
    assert not dweight[3:].any()
