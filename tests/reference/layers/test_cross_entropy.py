"""What only cross-entropy has."""

import numpy as np
import pytest

from llmlab.harness.arrays import convert, to_numpy
from llmlab.kernels.twin import twins_of
from llmlab.reference.layers.cross_entropy import (
    CROSS_ENTROPY,
    cross_entropy,
    cross_entropy_backward,
    log_sum_exp,
    mean_loss,
)

RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.standard_normal((2, 3, 17)), RNG.integers(0, 17, (2, 3))


def test_equal_logits_cost_log_of_the_vocabulary():
    np.testing.assert_allclose(cross_entropy(np.full((1, 2, 17), 3.0), TARGETS[:1, :2]), np.log(17), rtol=1e-15)


def test_a_common_shift_of_the_logits_changes_nothing_but_the_z_loss():
    np.testing.assert_allclose(cross_entropy(LOGITS + 100, TARGETS), cross_entropy(LOGITS, TARGETS), atol=1e-12)
    z_loss = cross_entropy(LOGITS + 100, TARGETS, z_loss=0.5) - cross_entropy(LOGITS, TARGETS)
    np.testing.assert_allclose(z_loss, 0.5 * (log_sum_exp(LOGITS) + 100) ** 2, rtol=1e-12)


def test_smoothing_is_the_mean_over_targets_drawn_from_the_mixture():
    every = np.stack([cross_entropy(LOGITS, np.full_like(TARGETS, v)) for v in range(17)])
    expected = 0.7 * cross_entropy(LOGITS, TARGETS) + 0.3 * every.mean(0)
    np.testing.assert_allclose(cross_entropy(LOGITS, TARGETS, label_smoothing=0.3), expected, rtol=1e-12)


def test_gradients_of_one_position_sum_to_zero_without_z_loss():
    dlogits, none = cross_entropy_backward(np.ones(TARGETS.shape), LOGITS, TARGETS, label_smoothing=0.2)
    assert none is None
    np.testing.assert_allclose(dlogits.sum(-1), 0, atol=1e-15)


def test_ignored_positions_cost_nothing_whatever_their_logits():
    logits, targets = LOGITS.copy(), TARGETS.copy()
    logits[0, 1], targets[0, 1] = np.nan, -100
    loss = cross_entropy(logits, targets, label_smoothing=0.1, z_loss=0.1)
    assert loss[0, 1] == 0
    dlogits, _ = cross_entropy_backward(np.ones(targets.shape), logits, targets)
    assert np.isfinite(loss).all()
    assert mean_loss(loss, targets) == pytest.approx(loss.sum() / 5)
    assert mean_loss(np.zeros((1, 2)), np.full((1, 2), -100)) == 0
    assert np.isfinite(np.delete(dlogits.reshape(6, -1), 1, 0)).all()


@pytest.mark.parametrize("wrong", [17, -1, -99])
def test_a_target_outside_the_vocabulary_is_refused(wrong):
    with pytest.raises(ValueError, match=f"target={wrong}: not in 0..16"):
        cross_entropy(LOGITS, np.full_like(TARGETS, wrong))


def test_smoothing_above_one_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing=1.5"):
        cross_entropy(LOGITS, TARGETS, label_smoothing=1.5)


@pytest.mark.parametrize("twin", [pytest.param(t, id=t.label) for t in twins_of(CROSS_ENTROPY) if t.of == "reference"])
@pytest.mark.parametrize("first", [-np.inf, -60.0, 60.0])
def test_long_vocabularies_are_right_wherever_the_maximum_lies(twin, first):
    logits = np.random.default_rng(1).standard_normal((1, 2, 9001)).astype(np.float32)
    logits[..., :5000] = first if np.isinf(first) else logits[..., :5000] + np.float32(first)
    targets = np.array([[8999, 6000]])
    exact = cross_entropy(logits.astype(np.float64), targets)
    result = to_numpy(twin.function(*convert({"logits": logits, "targets": targets}, twin.backend, "float32")))
    np.testing.assert_allclose(result, exact, rtol=2e-6)
