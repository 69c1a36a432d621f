"""What only Flamingo's blocks have."""

import numpy as np
import pytest

from llmlab.reference.multimodal.flamingo import flamingo, resampled, tiny_weights
from tests.reference.models.encoder_laws import assert_close, assert_every_weight_matters

RNG = np.random.default_rng(0)
RESAMPLER, GATED = tiny_weights(RNG, layers=2)
FEATURES, TOKENS, KEEP = RNG.standard_normal((2, 5, 6)), RNG.standard_normal((2, 4, 6)), np.array([True, False])


def test_closed_gates_leave_the_language_model_alone() -> None:
    closed = {**GATED, "attention_gate": np.array(0.0), "feed_forward_gate": np.array(0.0)}
    np.testing.assert_array_equal(flamingo(RESAMPLER, closed, FEATURES, TOKENS, KEEP, heads=2)["tokens"], TOKENS)


def test_a_text_without_a_picture_does_not_see_one() -> None:
    before = flamingo(RESAMPLER, GATED, FEATURES, TOKENS, KEEP, heads=2)["tokens"]
    after = flamingo(RESAMPLER, GATED, FEATURES + 1e3 * RNG.standard_normal(FEATURES.shape), TOKENS, KEEP, heads=2)["tokens"]
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0] - before[0]).max() > 1e-3


def test_any_number_of_features_gives_the_same_number_of_latents() -> None:
    for features in (1, 5, 40):
        assert resampled(RESAMPLER, RNG.standard_normal((1, features, 6)), heads=2).shape == (1, 3, 6)


def test_the_order_of_features_does_not_matter() -> None:
    order = RNG.permutation(5)
    assert_close(resampled(RESAMPLER, FEATURES[:, order], heads=4), resampled(RESAMPLER, FEATURES, heads=4))


def test_every_weight_matters() -> None:
    assert_every_weight_matters(lambda w: resampled(w, FEATURES, heads=2), RESAMPLER)
    assert_every_weight_matters(lambda w: flamingo(RESAMPLER, w, FEATURES, TOKENS, KEEP, heads=2)["tokens"], GATED)


def test_gates_are_those_of_idefics() -> None:
    """Its layer differs inside (RMSNorm, SwiGLU); with its blocks' output taken as given, the gating is the same."""
    torch = pytest.importorskip("torch", reason="needs torch")
    gate = torch.nn.Tanh()(torch.tensor(0.7, dtype=torch.float64)).item()
    opened = {**GATED, "attention_gate": np.array(0.7), "feed_forward_gate": np.array(0.0)}
    full = {**GATED, "attention_gate": np.array(np.inf), "feed_forward_gate": np.array(0.0)}
    part, whole = (flamingo(RESAMPLER, w, FEATURES, TOKENS, KEEP, heads=2)["tokens"] - TOKENS for w in (opened, full))
    np.testing.assert_allclose(part, gate * whole, rtol=1e-9, atol=1e-12)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="heads=3: must divide the 8 rows"):
        flamingo(RESAMPLER, GATED, FEATURES, TOKENS, KEEP, heads=3)
