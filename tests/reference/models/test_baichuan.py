"""What only Baichuan has. transformers has no class of its own for it; see the oracle for what stands in."""

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.models._blocks import drawn
from llmlab.reference.models._presets import preset
from llmlab.reference.models.baichuan import ARCHITECTURE, baichuan


def test_the_second_ones_rows_of_the_output_matrix_have_length_one() -> None:
    ids = np.arange(5)[None]
    for name, stays in (("baichuan2-13b", True), ("baichuan-13b", False)):
        config, weights = drawn(ARCHITECTURE, name)
        louder = weights | {"lm_head.weight": weights["lm_head.weight"] * np.arange(1, 38)[:, None]}
        assert (error_of(baichuan(config, louder, ids), baichuan(config, weights, ids)) < 1e-12) == stays


@pytest.mark.parametrize(
    ("name", "parameters", "positions", "normalized"),
    [
        ("Baichuan-7B", 7000559616, "rotary", False),
        ("Baichuan-13B-Base", 13264901120, "alibi", False),
        ("Baichuan2-7B-Base", 7505973248, "rotary", True),
        ("Baichuan2-13B-Base", 13896668160, "alibi", True),
    ],
)
def test_the_four_releases_are_told_apart(name: str, parameters: int, positions: str, normalized: bool) -> None:
    config = preset(name)
    assert config is not None
    assert (config.num_parameters, config.positions, config.normalized_head) == (parameters, positions, normalized)
