"""What only penalties have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding.penalties import PENALTIES, closing, penalties

SEEDS = st.integers(0, 2**32 - 1)
NOTHING = np.zeros((1, 0), dtype=np.int64)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 9)), rng.integers(-1, 9, (2, 4)), rng.integers(-1, 9, (2, 6))


@given(SEEDS)
def test_without_options_nothing_changes(seed: int) -> None:
    logits_BV, prompt_BP, output_BS = drawn(seed)
    np.testing.assert_array_equal(penalties(logits_BV, prompt_BP, output_BS), logits_BV)


@given(SEEDS, st.floats(1.01, 3))
def test_a_repeated_token_never_becomes_likelier(seed: int, repetition: float) -> None:
    logits_BV, prompt_BP, output_BS = drawn(seed)
    lowered_BV = penalties(logits_BV, prompt_BP, output_BS, repetition=repetition)
    assert np.all(lowered_BV <= logits_BV)
    for b in range(2):
        seen = sorted({*prompt_BP[b].tolist(), *output_BS[b].tolist()} - {-1})
        np.testing.assert_array_equal(np.flatnonzero(lowered_BV[b] != logits_BV[b]), seen)


def test_repetition_counts_a_token_once_and_frequency_each_time() -> None:
    logits = np.array([[2.0, 2.0]])
    text = np.array([[0, 0, 0, 1]])
    assert penalties(logits, NOTHING, text, repetition=2.0).tolist() == [[1.0, 1.0]]
    assert penalties(logits, NOTHING, text, frequency=0.5).tolist() == [[0.5, 1.5]]
    assert penalties(logits, NOTHING, text, presence=0.5).tolist() == [[1.5, 1.5]]


def test_frequency_and_presence_do_not_look_at_the_prompt() -> None:
    logits = np.array([[2.0, 2.0]])
    np.testing.assert_array_equal(penalties(logits, np.array([[0, 0]]), NOTHING, frequency=1.0, presence=1.0), logits)
    assert penalties(logits, np.array([[0, 0]]), NOTHING, repetition=2.0).tolist() == [[1.0, 2.0]]


@given(SEEDS)
def test_padding_may_stand_anywhere(seed: int) -> None:
    logits_BV, prompt_BP, output_BS = drawn(seed)
    options = {"repetition": 1.5, "frequency": 0.4, "presence": 0.3, "no_repeat_ngram": 2}
    padded = np.insert(output_BS, [0, 3, 3, 6], -1, axis=1)
    np.testing.assert_array_equal(
        penalties(logits_BV, prompt_BP, padded, **options),  # type: ignore[arg-type]
        penalties(logits_BV, prompt_BP, output_BS, **options),  # type: ignore[arg-type]
    )


@given(SEEDS, st.integers(1, 4))
def test_a_text_under_it_never_repeats_an_ngram(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    text: list[int] = []
    for _ in range(25):
        allowed_BV = penalties(rng.standard_normal((1, 4)), NOTHING, np.array([text], dtype=np.int64), no_repeat_ngram=n)
        if np.isinf(allowed_BV).all():
            break
        text.append(int(allowed_BV.argmax()))
    ngrams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    assert len(set(ngrams)) == len(ngrams)
    banned = {token for token in range(4) if tuple([*text, token][-n:]) in ngrams} if len(text) >= n - 1 else set()
    assert set(closing(np.array(text, dtype=np.int64), n)) == banned


def test_ctrl_as_printed_rewards_tokens_with_negative_logits() -> None:
    """CTRL's equation divides whatever the sign: its seen token rises from -2 to -1.6. Ours, as the engines', sinks."""
    logits = np.array([[-2.0, -1.9]])
    assert (logits / 1.25)[0, 0] > logits[0, 0]
    assert penalties(logits, NOTHING, np.array([[0]]), repetition=1.25)[0, 0] < logits[0, 0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"repetition": 0.0}, "repetition=0.0"),
        ({"frequency": 2.5}, "frequency=2.5"),
        ({"presence": float("nan")}, "presence=nan"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram=-1"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        penalties(np.zeros((1, 3)), NOTHING, NOTHING, **options)  # type: ignore[arg-type]


def test_a_token_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match=r"3\.\.3 outside -1\.\.2"):
        penalties(np.zeros((1, 3)), NOTHING, np.array([[3]]))


def test_the_first_option_set_is_what_the_cost_says() -> None:
    d = {"B": 2, "V": 100, "P": 3, "S": 5}
    assert PENALTIES.cost_of(d).flops == 3 * 2 * 8
