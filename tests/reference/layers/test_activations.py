"""What only the activations have."""

import math

import numpy as np
import pytest

from llmlab.harness.arrays import convert, to_numpy
from llmlab.kernels.twin import twins_of
from llmlab.reference.layers._activation import FUNCTIONS
from llmlab.reference.layers.activations import ACTIVATIONS, activations
from llmlab.reference.layers.glu import GLU

X = np.linspace(-8, 8, 1001).reshape(1, 1, -1)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu"])
def test_value_at_x_minus_value_at_minus_x_is_x(kind):
    np.testing.assert_allclose(activations(X, kind=kind) - activations(-X, kind=kind), X, atol=1e-14)


def test_tanh_form_is_within_half_a_thousandth_of_exact_gelu():
    assert 1e-4 < np.abs(activations(X, kind="gelu_tanh") - activations(X)).max() < 5e-4


def test_exact_gelu_is_x_times_the_normal_distribution():
    normal = [0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X.ravel()]
    np.testing.assert_allclose(activations(X).ravel(), X.ravel() * normal, atol=1e-15)


def test_relu2_is_relu_squared():
    np.testing.assert_array_equal(activations(X, kind="relu2"), activations(X, kind="relu") ** 2)


@pytest.mark.parametrize("op", [ACTIVATIONS, GLU], ids=lambda op: op.id)
def test_an_unknown_kind_is_refused_by_reference_and_twins(op):
    inputs = list(op.make_inputs({"B": 1, "T": 1, "F": 4}, np.random.default_rng(0)).values())
    with pytest.raises(ValueError, match="kind='swish' is none of gelu"):
        op.reference(*inputs, kind="swish")
    for twin in twins_of(op):
        if twin.of == "reference":
            given = convert({str(i): array for i, array in enumerate(inputs)}, twin.backend, "float32")
            with pytest.raises(ValueError, match="kind='swish'"):
                twin.function(*given, kind="swish")


@pytest.mark.parametrize("kind", list(FUNCTIONS))
def test_far_values_neither_overflow_nor_turn_nan(kind):
    x = np.array([[[-1e4, -200.0, -88.0, 88.0, 200.0, 1e4]]])
    expected = activations(x, kind=kind)
    assert np.isfinite(expected).all()
    for twin in twins_of(ACTIVATIONS):
        if twin.of == "reference":
            with np.errstate(over="ignore"):  # Triton's interpreter computes with NumPy
                result = to_numpy(twin.function(*convert({"x": x}, twin.backend, "float32"), kind=kind))
            np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
