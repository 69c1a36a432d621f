"""What only BLOOM has."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.errors import InputError
from llmlab.reference.models._blocks import biased_attention, drawn
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset
from llmlab.reference.models.bloom import ARCHITECTURE, bloom


def test_the_scale_of_the_embedding_does_not_matter() -> None:
    """The norm right behind it takes it out again; with the tied matrix untied the logits stay."""
    config, weights = drawn(ARCHITECTURE, "bloom of three heads")
    name, ids = "transformer.word_embeddings.weight", np.arange(6)[None]
    config = ModelConfig(**{**vars(config), "rms_norm_eps": 1e-30})
    assert error_of(bloom(config, weights | {name: 8 * weights[name]}, ids), bloom(config, weights, ids)) < 1e-12


def test_a_far_key_weighs_less_by_its_slope() -> None:
    zeros = np.zeros((1, 1, 1, 2, 4))
    values = np.eye(3)[None, :, None, :]
    out = biased_attention(zeros, np.zeros((1, 3, 1, 4)), values)[0, 0, 0]
    for head, slope in enumerate((1 / 16, 1 / 256)):
        weights = np.exp(-slope * np.array([2, 1, 0]))
        np.testing.assert_allclose(out[head], weights / weights.sum(), rtol=1e-14)


def test_residuals_after_the_norm_are_refused() -> None:
    with pytest.raises(InputError, match="apply_residual_connection_post_layernorm"):
        ModelConfig.from_dict({**ARCHITECTURE.tiny["bloom"], "apply_residual_connection_post_layernorm": True})


@pytest.mark.parametrize(("name", "parameters"), [("bloom", 176247271424), ("bloom-560m", 559214592)])
def test_released_sizes_have_as_many_parameters_as_their_files(name: str, parameters: int) -> None:
    config = preset(name)
    assert config is not None
    assert config.num_parameters == parameters
