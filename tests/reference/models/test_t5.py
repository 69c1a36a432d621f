"""What only T5 has."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._encoder_decoder import decode_step, encode
from llmlab.reference.models._stack import drawn
from llmlab.reference.models.t5 import T5Config, bias_name, t5, tiny_config
from tests.reference.models.encoder_laws import (
    assert_close,
    assert_cutting_targets_changes_nothing,
    assert_every_weight_matters,
    count,
)

RNG = np.random.default_rng(0)
SOURCE, TARGET = RNG.integers(0, 31, (2, 6)), RNG.integers(0, 31, (2, 5))
KEEP = np.array([[True] * 6, [True] * 4 + [False] * 2])
KINDS = ("t5", "flan")


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_token_by_token_equals_decoding_at_once(kind: str) -> None:
    config = tiny_config(kind)
    inputs = {"source": SOURCE, "keep_BM": KEEP, "target_BT": TARGET}
    assert_cutting_targets_changes_nothing(encode, decode_step, config, drawn(config.weight_shapes(), RNG), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_matters(kind: str) -> None:
    config = tiny_config(kind)
    assert_every_weight_matters(lambda w: t5(config, w, SOURCE, KEEP, TARGET), drawn(config.weight_shapes(), RNG))


def test_only_distances_matter_not_positions() -> None:
    config = tiny_config("t5")
    weights = drawn(config.weight_shapes(), RNG)
    shifted = np.concatenate([[[5, 5]] * 2, SOURCE], axis=1)
    keep = np.concatenate([[[False, False]] * 2, KEEP], axis=1)
    assert_close(encode(config, weights, shifted, keep)[:, 2:], encode(config, weights, SOURCE, KEEP))


def test_without_its_bias_a_text_is_a_bag_of_tokens() -> None:
    config = tiny_config("t5")
    weights = drawn(config.weight_shapes(), RNG)
    weights[bias_name("encoder")] = np.zeros_like(weights[bias_name("encoder")])
    order, whole = RNG.permutation(6), np.ones((2, 6), bool)
    assert_close(encode(config, weights, SOURCE[:, order], whole), encode(config, weights, SOURCE, whole)[:, order])


def test_published_sizes_come_out() -> None:
    small = {"d_model": 512, "num_heads": 8, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "vocab_size": 32128}
    assert count(T5Config.from_dict({"model_type": "t5", **small}).weight_shapes()) == 60_506_624
    flan = {"d_model": 768, "num_heads": 12, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "vocab_size": 32128}
    flan |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    assert count(T5Config.from_dict({"model_type": "t5", **flan}).weight_shapes()) == 247_577_856


def test_an_unknown_feed_forward_block_ends_with_one_line() -> None:
    with pytest.raises(InputError, match="feed_forward_proj"):
        T5Config.from_dict({"model_type": "t5", "feed_forward_proj": "gated-nothing"}, "config.json")
