"""What only OPT has."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._blocks import drawn
from llmlab.reference.models._presets import preset
from llmlab.reference.models.opt import ARCHITECTURE, opt

TABLE = "model.decoder.embed_positions.weight"


def test_two_rows_in_front_of_the_position_table_are_never_read() -> None:
    config, weights = drawn(ARCHITECTURE, "opt")
    ids = np.arange(5)[None]
    for row, moves in ((0, False), (1, False), (2, True), (6, True), (7, False)):
        table = weights[TABLE].copy()
        table[row] += np.arange(config.hidden_size) / 10
        assert (error_of(opt(config, weights | {TABLE: table}, ids), opt(config, weights, ids)) > 1e-6) == moves


def test_the_post_norm_model_forgets_the_scale_of_its_embedding_but_for_the_first_sum() -> None:
    """After the last norm hidden states have the norm's own mean and variance, whatever went in."""
    config, weights = drawn(ARCHITECTURE, "opt-350m")
    assert config.post_norm
    assert not config.final_norm
    plain = {
        "model.decoder.layers.1.final_layer_norm.weight": np.zeros(24),
        "model.decoder.layers.1.final_layer_norm.bias": np.ones(24),
    }
    logits = opt(config, weights | plain, np.arange(4)[None])
    head = weights["model.decoder.embed_tokens.weight"] @ weights["model.decoder.project_out.weight"].sum(1)
    assert error_of(logits, np.broadcast_to(head, logits.shape)) < 1e-12


@pytest.mark.parametrize(("name", "parameters"), [("opt-125m", 125239296), ("opt-350m", 331196416)])
def test_released_sizes_have_as_many_parameters_as_their_files(name: str, parameters: int) -> None:
    config = preset(name)
    assert config is not None
    assert config.num_parameters == parameters
