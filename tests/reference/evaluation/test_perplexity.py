"""What only perplexity has."""

import numpy as np
import pytest

from llmlab.reference.evaluation.perplexity import bits_per_byte, perplexity, strided_windows
from llmlab.reference.models._weights import random_weights
from llmlab.reference.models.llama import llama, tiny_config

RNG = np.random.default_rng(0)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    ids = RNG.integers(0, 11, (2, 5))
    scored = np.ones_like(ids, dtype=bool)
    scored[:, 0] = False
    assert perplexity(np.zeros((2, 5, 11)), ids, scored)[0] == pytest.approx(11)


def test_every_token_but_the_first_is_scored_once_by_any_stride() -> None:
    for length in (2, 3, 7, 12):
        for context in (2, 3, 5, 20):
            for stride in range(1, context + 1):
                text = np.arange(100, 100 + length)
                ids, scored = strided_windows(text, context=context, stride=stride)
                if stride < context or length <= context:
                    assert sorted(ids[scored]) == list(text[1:])
                else:  # side by side: the first token of a window has no past in it
                    assert set(ids[scored]) == set(text[1:]) - set(ids[1:, 0])
                assert not scored[:, 0].any()


def test_later_windows_give_each_token_at_least_the_promised_past() -> None:
    ids, scored = strided_windows(np.arange(40), context=10, stride=3)
    past = np.broadcast_to(np.arange(10), ids.shape)[1:]
    assert past[scored[1:]].min() >= 10 - 3


def test_a_longer_past_is_what_a_stride_of_one_sees() -> None:
    config = tiny_config("llama-2")
    weights = {name: w.astype(np.float64) for name, w in random_weights(config, RNG, std=0.2).items()}
    text = RNG.integers(0, config.vocab_size, 9)
    ids, scored = strided_windows(text, context=4, stride=1)
    found = perplexity(llama(config, weights, ids), ids, scored)[0]
    nats = []
    for t in range(1, 9):
        logits = llama(config, weights, text[None, max(0, t - 3) : t])[0, -1]
        nats.append(np.log(np.sum(np.exp(logits))) - logits[text[t]])
    assert found == pytest.approx(np.exp(np.mean(nats)))


def test_what_is_not_scored_has_no_say() -> None:
    logits, ids = RNG.standard_normal((1, 4, 5)), np.array([[0, 1, 2, 3]])
    scored = np.array([[False, True, False, True]])
    before = perplexity(logits, ids, scored)
    logits[0, 1], logits[0, 3] = np.nan, np.inf  # predict position 2, and nothing
    np.testing.assert_array_equal(perplexity(logits, ids, scored), before)
    logits[0, 0, 0] = np.nan
    assert np.isnan(perplexity(logits, ids, scored)).all()


def test_bits_per_byte_does_not_depend_on_how_text_is_cut() -> None:
    # two bits per byte, whether a token is one byte or four
    assert bits_per_byte(2.0, tokens=40, num_bytes=40) == bits_per_byte(8.0, tokens=10, num_bytes=40) == 2


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: perplexity(np.zeros((1, 2, 3)), np.zeros((1, 2), int), np.zeros((1, 2), bool)), "no token is scored"),
        (lambda: perplexity(np.zeros((1, 2, 3)), np.zeros((1, 2), int), np.ones((1, 2), bool)), "position 0 is scored"),
        (lambda: perplexity(np.zeros((1, 2, 3)), np.array([[0, 3]]), np.array([[False, True]])), "target=3"),
        (lambda: strided_windows(np.arange(5), context=2, stride=3), "stride=3, context=2"),
        (lambda: strided_windows(np.arange(1), context=2, stride=1), "1 tokens"),
        (lambda: bits_per_byte(1.0, 1, 0), "num_bytes=0"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, why) -> None:
    with pytest.raises(ValueError, match=why):
        call()
