"""What only BERT and RoBERTa have."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._stack import drawn
from llmlab.reference.models.bert import BertConfig, bert, bert_cost, tiny_config
from tests.reference.models.encoder_laws import assert_close, assert_every_weight_matters, count

KINDS = ("bert", "roberta")
RNG = np.random.default_rng(0)


def example(kind: str, B: int = 2, T: int = 7):
    config = tiny_config(kind)
    ids = RNG.integers(2, config.vocab_size, (B, T))
    segments = RNG.integers(0, config.segments, (B, T))
    return config, drawn(config.weight_shapes(), RNG), ids, np.ones((B, T), bool), segments


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_changes_nothing(kind: str) -> None:
    config, weights, ids, keep, segments = example(kind)
    longer = np.pad(ids, ((0, 0), (0, 3)), constant_values=1)
    padded = bert(config, weights, longer, longer != 1, np.pad(segments, ((0, 0), (0, 3))))
    assert_close(padded[:, :7], bert(config, weights, ids, keep, segments))


def test_every_position_sees_every_other() -> None:
    config, weights, ids, keep, segments = example("bert", B=1)
    before = bert(config, weights, ids, keep, segments)
    for t in (0, 6):
        changed = ids.copy()
        changed[0, t] = 2 + (ids[0, t] - 1) % (config.vocab_size - 2)
        difference = np.abs(bert(config, weights, changed, keep, segments) - before).max(axis=(0, 2))
        assert (difference > 1e-6).all()


def test_roberta_counts_positions_from_after_the_padding() -> None:
    config, weights, ids, keep, segments = example("roberta", B=1, T=4)
    left = np.concatenate([[[1, 1]], ids], axis=1)  # padding in front shifts nothing: it is not counted
    shifted = bert(config, weights, left, left != 1, np.pad(segments, ((0, 0), (2, 0))))
    assert_close(shifted[:, 2:], bert(config, weights, ids, keep, segments))
    two = tiny_config("bert")
    with pytest.raises(ValueError, match="id=16"):
        bert(two, drawn(two.weight_shapes(), RNG), np.ones((1, 17), int), np.ones((1, 17), bool), np.zeros((1, 17), int))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_matters(kind: str) -> None:
    config, weights, ids, keep, _ = example(kind)
    segments = np.arange(ids.size).reshape(ids.shape) % config.segments
    # all positions and tokens of the tables are used by nobody; moving a table moves some of them
    assert_every_weight_matters(lambda w: bert(config, w, ids, keep, segments), weights)


def test_published_sizes_come_out() -> None:
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    bert_base = BertConfig.from_dict({"model_type": "bert", "vocab_size": 30522, **base})
    # the released encoder has 109,482,240 with its pooler of D (D + 1), which the masked-token head does without
    assert count(bert_base.encoder_shapes()) == 109_482_240 - 768 * 769
    roberta = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    assert count(BertConfig.from_dict({"model_type": "roberta", **roberta, **base}).weight_shapes()) == 124_697_433


def test_cost_is_two_flops_per_weight_and_token_beside_attention() -> None:
    config = tiny_config("bert")
    s = config.stack
    d = {"L": s.layers, "D": s.width, "N": s.heads, "F": s.hidden, "V": config.vocab_size, "B": 2, "T": 5}
    matrices = sum(np.prod(shape) for name, shape in config.weight_shapes().items() if len(shape) == 2 and "embed" not in name)
    attention = s.layers * 4 * s.width * 5 * 5
    assert bert_cost(d).flops == 2 * (2 * 5 * (matrices + s.width * config.vocab_size) + attention)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_attention_heads": 5}, "hidden_size=12: must be a multiple of 5"),
        ({"hidden_act": "swish9"}, "hidden_act"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"vocab_size": None}, "vocab_size"),
        ({"intermediate_size": -1}, "intermediate_size"),
    ],
)
def test_bad_files_end_with_one_line(change, why) -> None:
    good = {"model_type": "bert", "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 4}
    good |= {"num_hidden_layers": 1, "vocab_size": 9}
    with pytest.raises(InputError) as caught:
        BertConfig.from_dict({**good, **change}, "config.json")
    assert why.split("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_misshapen_weight_is_named() -> None:
    config, weights, ids, keep, segments = example("bert")
    with pytest.raises(ValueError, match=r"cls\.predictions\.bias"):
        bert(config, {k: v for k, v in weights.items() if k != "cls.predictions.bias"}, ids, keep, segments)
    with pytest.raises(ValueError, match="has shape"):
        bert(config, {**weights, "cls.predictions.bias": np.zeros(3)}, ids, keep, segments)
