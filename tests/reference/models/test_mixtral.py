"""What only Mixtral has."""

import numpy as np

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import drawn
from llmlab.reference.models._experts import routed
from llmlab.reference.models.mixtral import ARCHITECTURE, mixtral


def test_weights_are_the_softmax_over_the_chosen_two_alone() -> None:
    config, weights = drawn(ARCHITECTURE, "mixtral")
    _, (own, *_) = unpack(config, weights)
    h = np.random.default_rng(0).standard_normal((2, 5, 24))
    chosen, weight = routed(config, own, h)
    logits = np.sort(h @ own["mlp.gate.weight"].T, axis=-1)[..., :-3:-1]
    scores = np.exp(logits - logits[..., :1])
    assert error_of(weight, scores / scores.sum(-1, keepdims=True)) < 1e-14
    assert chosen.shape == (2, 5, 2)


def test_equal_experts_are_one_feed_forward_whatever_the_router_says() -> None:
    config, weights = drawn(ARCHITECTURE, "mixtral")
    same = {name: np.broadcast_to(array[:1], array.shape) if "experts" in name else array for name, array in weights.items()}
    other = {name: array[::-1] if name.endswith("mlp.gate.weight") else array for name, array in same.items()}
    ids = np.arange(6)[None]
    assert error_of(mixtral(config, other, ids), mixtral(config, same, ids)) < 1e-13
    assert error_of(mixtral(config, same, ids), mixtral(config, weights, ids)) > 0.01
