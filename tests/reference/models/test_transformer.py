"""What only the Transformer of 2017 has."""

import numpy as np

from llmlab.reference.models._encoder_decoder import decode_step, encode, encoder_decoder_cost
from llmlab.reference.models._stack import drawn
from llmlab.reference.models.transformer import base_config, tiny_config, transformer
from tests.reference.models.encoder_laws import (
    assert_close,
    assert_cutting_targets_changes_nothing,
    assert_every_weight_matters,
    count,
)

RNG = np.random.default_rng(0)
CONFIG = tiny_config()
WEIGHTS = drawn(CONFIG.weight_shapes(), RNG)
SOURCE, TARGET = RNG.integers(0, 31, (2, 6)), RNG.integers(0, 31, (2, 5))
KEEP = np.array([[True] * 6, [True] * 4 + [False] * 2])


def test_decoding_token_by_token_equals_decoding_at_once() -> None:
    inputs = {"source": SOURCE, "keep_BM": KEEP, "target_BT": TARGET}
    assert_cutting_targets_changes_nothing(encode, decode_step, CONFIG, WEIGHTS, inputs)


def test_padding_has_no_say() -> None:
    other = np.where(KEEP, SOURCE, 9)
    before = transformer(CONFIG, WEIGHTS, SOURCE, KEEP, TARGET)
    np.testing.assert_array_equal(transformer(CONFIG, WEIGHTS, other, KEEP, TARGET), before)
    assert_close(transformer(CONFIG, WEIGHTS, SOURCE[1:, :4], KEEP[1:, :4], TARGET[1:]), before[1:])


def test_every_weight_matters() -> None:
    assert_every_weight_matters(lambda w: transformer(CONFIG, w, SOURCE, KEEP, TARGET), WEIGHTS)


def test_the_papers_base_model_has_its_65_million_parameters() -> None:
    assert round(count(base_config().weight_shapes()) / 1e6) in (63, 64, 65)  # table 3 says 65 with 37,000 "or so" tokens


def test_cost_is_two_flops_per_weight_and_token_beside_attention() -> None:
    B, M, T = 2, 6, 5
    d = {"L": 2, "D": 12, "N": 3, "F": 17, "V": 31, "B": B, "M": M, "T": T}
    sizes = {
        name: np.prod(shape) for name, shape in CONFIG.weight_shapes().items() if name.endswith("weight") and len(shape) == 2
    }
    source = sum(n for name, n in sizes.items() if ".encoder." in name or "encoder_attn.k" in name or "encoder_attn.v" in name)
    target = sum(n for name, n in sizes.items() if ".decoder." in name) - 2 * 2 * 12 * 12 + sizes["model.shared.weight"]
    attention = 2 * 4 * 12 * (M * M + T * (T + 1) // 2 + T * M)
    assert encoder_decoder_cost(d).flops == B * (2 * M * source + 2 * T * target + attention)
