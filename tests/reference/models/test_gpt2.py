"""What only GPT-2 has."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.errors import InputError
from llmlab.reference.models._blocks import decoder, drawn
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset
from llmlab.reference.models.gpt2 import ARCHITECTURE, gpt2


def test_square_matrices_of_the_files_are_in_out() -> None:
    config, weights = drawn(ARCHITECTURE, "gpt2")
    name, ids = "transformer.h.0.attn.c_proj.weight", np.arange(6)[None]
    turned = gpt2(config, weights | {name: weights[name].T}, ids)
    assert error_of(turned, gpt2(config, weights, ids)) > 0.01


def test_a_row_of_the_position_table_moves_its_position_and_what_follows() -> None:
    config, weights = drawn(ARCHITECTURE, "gpt2")
    table = weights["transformer.wpe.weight"].copy()
    table[3] += np.arange(config.hidden_size) / 10
    ids = np.arange(7)[None]
    moved, whole = gpt2(config, weights | {"transformer.wpe.weight": table}, ids), gpt2(config, weights, ids)
    changed = np.abs(moved - whole).max(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 3 + [True] * 4


def test_texts_past_the_position_table_are_refused() -> None:
    config, weights = drawn(ARCHITECTURE, "gpt2")
    _, past = decoder(config, weights, np.zeros((1, 15), int))
    decoder(config, weights, np.zeros((1, 1), int), past)
    with pytest.raises(ValueError, match="17 tokens, but positions for 16"):
        decoder(config, weights, np.zeros((1, 2), int), past)


def test_scaling_by_the_layers_number_is_refused() -> None:
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx"):
        ModelConfig.from_dict({**ARCHITECTURE.tiny["gpt2"], "scale_attn_by_inverse_layer_idx": True})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2", 124439808), ("gpt2-medium", 354823168), ("gpt2-large", 774030080), ("gpt2-xl", 1557611200)],
)
def test_released_sizes_have_as_many_parameters_as_their_files(name: str, parameters: int) -> None:
    config = preset(name)
    assert config is not None
    assert config.num_parameters == parameters
