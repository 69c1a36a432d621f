"""What only softmax has."""

import numpy as np
import pytest

from llmlab.harness.arrays import convert, to_numpy
from llmlab.kernels.twin import twins_of
from llmlab.reference.layers.softmax import SOFTMAX, softmax

FORWARD = [pytest.param(twin, id=twin.backend) for twin in twins_of(SOFTMAX) if twin.of == "reference"]


def run(twin, x, **options):
    return to_numpy(twin.function(*convert({"x": x}, twin.backend, "float32"), **options))


def test_weights_sum_to_one_and_ignore_a_common_shift():
    x = np.random.default_rng(0).standard_normal((2, 3, 50))
    np.testing.assert_allclose(softmax(x).sum(-1), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax(x + 1e4), softmax(x), rtol=1e-10)


def test_scores_of_a_thousand_do_not_overflow():
    assert softmax(np.array([1000.0, 999.0]))[0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_axis_is_the_axis_that_sums_to_one():
    x = np.random.default_rng(1).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(softmax(x, axis=1), np.moveaxis(softmax(np.moveaxis(x, 1, -1)), -1, 1))


@pytest.mark.parametrize("twin", FORWARD)
def test_a_row_that_sees_nothing_gives_zeros(twin):
    x = np.random.default_rng(2).standard_normal((2, 3, 70)).astype(np.float32)
    x[0, 1], x[1, 2, :40] = -np.inf, -np.inf
    for result in (softmax(x), run(twin, x)):
        assert (result[0, 1] == 0).all()
        assert (result[1, 2, :40] == 0).all()
        assert result[1, 2].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("twin", FORWARD)
@pytest.mark.parametrize("order", ["rising", "falling", "late", "masked first"])
def test_long_rows_are_right_wherever_their_maximum_lies(twin, order):
    """More than two chunks of 4096: the online form must correct what it summed before the maximum came."""
    x = np.random.default_rng(3).standard_normal((1, 2, 9001)).astype(np.float32)
    x[0, 0] += {"rising": np.linspace(-40, 40, 9001), "falling": np.linspace(40, -40, 9001)}.get(order, np.zeros(9001)).astype(
        "f"
    )
    if order == "late":
        x[..., -1] = 50.0
    if order == "masked first":
        x[..., :5000], x[0, 1] = -np.inf, -np.inf
    exact = softmax(x.astype(np.float64))
    np.testing.assert_allclose(run(twin, x), exact, rtol=3e-6, atol=1e-12)


@pytest.mark.parametrize("twin", FORWARD)
def test_a_nan_late_in_a_long_row_makes_the_whole_row_nan_and_no_other(twin):
    x = np.zeros((1, 2, 9001), np.float32)
    x[0, 0, 9000] = np.nan
    result = run(twin, x)
    assert np.isnan(result[0, 0]).all()
    assert np.isfinite(result[0, 1]).all()


def test_the_gradient_of_a_row_that_sees_nothing_is_zero_in_torch():
    torch = pytest.importorskip("torch", reason="needs torch")
    from llmlab.kernels.layers.softmax_torch import softmax as twin

    x = torch.full((1, 1, 4), -torch.inf, dtype=torch.float64, requires_grad=True)
    twin(x).sum().backward()
    assert (x.grad == 0).all()
