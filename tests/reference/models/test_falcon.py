"""What only Falcon has."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import biased_attention, drawn
from llmlab.reference.models._presets import preset
from llmlab.reference.models.falcon import ARCHITECTURE
from llmlab.reference.positions.alibi import alibi_slopes


def test_files_hold_the_queries_of_a_group_its_key_and_its_value_together() -> None:
    config, weights = drawn(ARCHITECTURE, "falcon-40b")
    _, (own, *_) = unpack(config, weights)
    packed, H = weights["transformer.h.0.self_attention.query_key_value.weight"], config.head_dim
    np.testing.assert_array_equal(own["self_attn.q_proj.weight"][: 3 * H], packed[: 3 * H])
    np.testing.assert_array_equal(own["self_attn.k_proj.weight"][:H], packed[3 * H : 4 * H])
    np.testing.assert_array_equal(own["self_attn.v_proj.weight"][H:], packed[9 * H :])


def test_the_first_release_has_one_key_and_value_for_all_heads() -> None:
    config, _ = drawn(ARCHITECTURE, "falcon-7b")
    assert (config.num_key_value_heads, config.norms_per_layer, config.parallel_block) == (1, 1, True)


def test_its_biases_are_divided_like_the_scores() -> None:
    """The ALiBi paper adds them undivided, as BLOOM does; Falcon's weights were trained this way."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((1, 4, 1, 2, 9)), rng.standard_normal((1, 4, 1, 9)), rng.standard_normal((1, 4, 1, 9))
    scaled = biased_attention(q, k, v, scaled=True)
    assert error_of(scaled, biased_attention(q, k, v)) > 0.001
    scores = np.einsum("btgh,bsh->bgts", q[:, :, 0], k[:, :, 0])
    scores += alibi_slopes(2)[:, None, None] * (np.arange(4) - np.arange(4)[:, None])
    weights = np.exp(np.where(np.tri(4, dtype=bool), scores / 3, -np.inf))
    by_hand = np.einsum("bgts,bsh->btgh", weights / weights.sum(-1, keepdims=True), v[:, :, 0])
    assert error_of(scaled[:, :, 0], by_hand) < 1e-14


def test_transformers_rounds_its_slopes_to_bfloat16_and_blooms_not() -> None:
    """Of 32 heads most slopes are no powers of two; the paper has no rounding, so neither has the reference."""
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor as blooms
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcons

    mask, exact = torch.ones(1, 2), alibi_slopes(32)
    worst = [np.abs(build(mask, 32, torch.float64)[:, 0, 1].numpy() / exact - 1).max() for build in (blooms, falcons)]
    assert worst[0] < 1e-6
    assert 1e-3 < worst[1] < 2**-8


@pytest.mark.parametrize(("name", "billions"), [("falcon-7b", 6.92), ("falcon-40b", 41.3), ("falcon-180B", 178.6)])
def test_the_output_matrix_is_the_embedding(name: str, billions: float) -> None:
    config = preset(name)
    assert config is not None
    assert config.tie_word_embeddings
    assert round(config.num_parameters / 1e9, 2) == pytest.approx(billions, abs=0.05)
