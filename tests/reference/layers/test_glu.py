"""What only gated linear units have."""

import numpy as np
import pytest

from llmlab.reference.layers._activation import FUNCTIONS
from llmlab.reference.layers.activations import activations
from llmlab.reference.layers.glu import glu, glu_backward

X = np.linspace(-8, 8, 1001).reshape(1, 1, -1)


@pytest.mark.parametrize("kind", list(FUNCTIONS))
def test_glu_is_the_activation_times_up(kind):
    up = np.random.default_rng(0).standard_normal(X.shape)
    np.testing.assert_array_equal(glu(X, up, kind=kind), activations(X, kind=kind) * up)


def test_reglu_lets_through_where_the_gate_is_positive():
    np.testing.assert_array_equal(glu(np.sign(X), X, kind="relu"), np.where(X > 0, X, 0))


def test_a_closed_gate_stops_the_gradient_of_up_only():
    gate, up = np.full((1, 1, 1), -3.0), np.full((1, 1, 1), 5.0)
    dgate, dup = glu_backward(np.ones((1, 1, 1)), gate, up, kind="relu")
    assert (dgate.item(), dup.item()) == (0, 0)
    dgate, dup = glu_backward(np.ones((1, 1, 1)), np.zeros((1, 1, 1)), up, kind="silu")
    assert (dgate.item(), dup.item()) == (2.5, 0)
