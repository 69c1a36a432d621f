"""What only GPT-NeoX has."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import block, drawn
from llmlab.reference.models._presets import preset
from llmlab.reference.models.gpt_neox import ARCHITECTURE


def test_the_feed_forward_does_not_see_what_attention_returns() -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, 24))
    for name, sees in (("gpt-neox", False), ("gpt-neox sequential", True)):
        config, weights = drawn(ARCHITECTURE, name)
        _, (own, *_) = unpack(config, weights)
        louder = own | {"self_attn.o_proj.bias": own["self_attn.o_proj.bias"] + np.arange(24) / 10}
        added = block(config, louder, x, None, layer=0)[0] - block(config, own, x, None, layer=0)[0]
        assert (error_of(added, np.broadcast_to(np.arange(24) / 10, added.shape)) > 1e-9) == sees


def test_files_hold_query_key_and_value_of_one_head_together() -> None:
    config, weights = drawn(ARCHITECTURE, "gpt-neox")
    _, (own, *_) = unpack(config, weights)
    packed, H = weights["gpt_neox.layers.0.attention.query_key_value.weight"], config.head_dim
    for head in range(3):
        for place, part in enumerate("qkv"):
            first = (3 * head + place) * H
            rows = own[f"self_attn.{part}_proj.weight"][head * H : (head + 1) * H]
            np.testing.assert_array_equal(rows, packed[first : first + H])


def test_three_quarters_of_a_head_are_not_rotated() -> None:
    config, _ = drawn(ARCHITECTURE, "gpt-neox")
    assert (config.rotary_width, config.head_dim) == (2, 8)


@pytest.mark.parametrize(("name", "parameters"), [("gpt-neox-20b", 20554567680), ("pythia-160m", 162322944)])
def test_released_sizes_have_as_many_parameters_as_their_files(name: str, parameters: int) -> None:
    config = preset(name)
    assert config is not None
    assert config.num_parameters == parameters
