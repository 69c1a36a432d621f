"""What only the Qwen models have."""

import numpy as np

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import drawn
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._experts import routed, shared_expert
from llmlab.reference.models.qwen import ARCHITECTURE, qwen


def test_the_scale_of_queries_and_keys_is_normed_away_in_the_third() -> None:
    ids = np.arange(6)[None]
    for name, stays in (("qwen3", True), ("qwen2", False)):
        config, weights = drawn(ARCHITECTURE, name)
        config = ModelConfig(**{**vars(config), "rms_norm_eps": 1e-30})
        louder = {key: 4 * array if "q_proj" in key else array for key, array in weights.items()}
        assert (error_of(qwen(config, louder, ids), qwen(config, weights, ids)) < 1e-12) == stays


def test_windows_start_at_the_layer_the_file_says() -> None:
    config, _ = drawn(ARCHITECTURE, "qwen2 windowed")
    assert [config.window_of(layer) for layer in range(2)] == [None, 4]


def test_named_layers_and_every_other_layer_are_dense() -> None:
    assert [drawn(ARCHITECTURE, "qwen3-moe")[0].is_sparse(layer) for layer in range(2)] == [True, False]
    assert [drawn(ARCHITECTURE, "qwen2-moe every other")[0].is_sparse(layer) for layer in range(2)] == [False, True]


def test_weights_of_the_chosen_are_rescaled_only_where_the_file_says_so() -> None:
    h = np.random.default_rng(0).standard_normal((1, 5, 24))
    for name, layer, whole in (("qwen2-moe", 0, False), ("qwen2-moe every other", 1, True)):
        config, weights = drawn(ARCHITECTURE, name)
        _, layers = unpack(config, weights)
        total = routed(config, layers[layer], h)[1].sum(-1)
        assert bool(np.all(np.abs(total - 1) < 1e-12)) == whole


def test_a_closed_gate_leaves_half_of_the_shared_expert() -> None:
    config, weights = drawn(ARCHITECTURE, "qwen2-moe")
    _, (own, *_) = unpack(config, weights)
    h = np.random.default_rng(0).standard_normal((1, 5, 24))
    gate = "mlp.shared_expert_gate.weight"
    half = shared_expert(config, own | {gate: np.zeros((1, 24))}, h)
    ungated = shared_expert(ModelConfig(**{**vars(config), "shared_expert_gate": False}), own, h)
    assert error_of(2 * half, ungated) < 1e-13
