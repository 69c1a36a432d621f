"""What only BART has."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._encoder_decoder import decode_step, encode
from llmlab.reference.models._fairseq import both_sides
from llmlab.reference.models._stack import drawn, run
from llmlab.reference.models.bart import BartConfig, bart, tiny_config
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


def test_what_is_padded_has_no_say_and_later_targets_change_nothing_before() -> None:
    before = bart(CONFIG, WEIGHTS, SOURCE, KEEP, TARGET)
    other, later = np.where(KEEP, SOURCE, 9), TARGET.copy()
    later[:, 3:] = 1
    np.testing.assert_array_equal(bart(CONFIG, WEIGHTS, other, KEEP, TARGET), before)
    assert_close(bart(CONFIG, WEIGHTS, SOURCE, KEEP, later)[:, :3], before[:, :3])


def test_every_weight_matters() -> None:
    assert_every_weight_matters(lambda w: bart(CONFIG, w, SOURCE, KEEP, TARGET), WEIGHTS)


def test_the_published_base_model_has_its_size() -> None:
    config = BartConfig.from_dict({"model_type": "bart", "d_model": 768, "vocab_size": 50265, **_BASE})
    assert count(config.weight_shapes()) == 139_420_416 + 50265  # the bias of the logits is no parameter there


_BASE = both_sides(layers=6, attention_heads=12, ffn_dim=3072)


def test_a_decoder_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the encoder's output"):
        run(CONFIG.decoder, WEIGHTS, np.zeros((1, 1, 12)))


def test_heads_that_do_not_divide_end_with_one_line() -> None:
    with pytest.raises(InputError, match="multiple of 12 attention heads"):
        BartConfig.from_dict({"model_type": "bart", "d_model": 100, "vocab_size": 9, **_BASE}, "config.json")
