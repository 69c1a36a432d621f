"""What only the Phi models have."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import drawn
from llmlab.reference.models._presets import preset
from llmlab.reference.models.phi import ARCHITECTURE, phi


def test_the_output_matrix_has_a_bias() -> None:
    config, weights = drawn(ARCHITECTURE, "phi-2")
    raised = weights | {"lm_head.bias": weights["lm_head.bias"] + np.arange(37)}
    ids = np.arange(4)[None]
    added = phi(config, raised, ids) - phi(config, weights, ids)
    assert error_of(added, np.broadcast_to(np.arange(37.0), added.shape)) < 1e-12


def test_phi_3_packs_queries_keys_and_values_and_gate_and_up() -> None:
    config, weights = drawn(ARCHITECTURE, "phi-3")
    _, (own, *_) = unpack(config, weights)
    packed = [own[f"self_attn.{x}_proj.weight"] for x in "qkv"]
    np.testing.assert_array_equal(np.concatenate(packed), weights["model.layers.0.self_attn.qkv_proj.weight"])
    packed = [own[f"mlp.{x}_proj.weight"] for x in ("gate", "up")]
    np.testing.assert_array_equal(np.concatenate(packed), weights["model.layers.0.mlp.gate_up_proj.weight"])


@pytest.mark.parametrize(
    ("name", "parameters"), [("phi-1_5", 1418270720), ("phi-2", 2779683840), ("Phi-3-mini-4k-instruct", 3821079552)]
)
def test_released_sizes_have_as_many_parameters_as_their_files(name: str, parameters: int) -> None:
    config = preset(name)
    assert config is not None
    assert config.num_parameters == parameters


def test_texts_past_the_first_context_are_rotated_by_the_long_factors_from_their_first_token_on() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.models._causal_lm import causal_lm

    assert transformers
    config, weights = drawn(ARCHITECTURE, "phi-3 of 128k")
    model = causal_lm(config, weights)
    for T in (64, 65):
        ids = np.random.default_rng(T).integers(0, 37, (1, T))
        with torch.no_grad():
            theirs = model(torch.from_numpy(ids)).logits.numpy()
        ours = phi(config, weights, ids)
        assert error_of(ours, theirs) <= 16 * np.finfo(np.float32).eps * np.abs(theirs).max()
    assert error_of(phi(config, weights, ids)[:, :64], phi(config, weights, ids[:, :64])) > 0.01
