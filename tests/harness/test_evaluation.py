"""Models in a table: what they are asked, how they answer, what the table says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmlab.harness.evaluation.multiple_choice import LanguageModel, Letters, Question, ask, evaluate, read_scenarios
from llmlab.reference.errors import InputError
from llmlab.reference.models._weights import load_llama2c, random_weights
from llmlab.reference.models.llama import llama, tiny_config

TINY = tiny_config("llama-2")
WEIGHTS = random_weights(TINY, np.random.default_rng(0), std=0.2)


def letters(text: str) -> list[int]:
    return [0, *(1 + byte % (TINY.vocab_size - 1) for byte in text.encode())]


TINY_MODEL = LanguageModel("tiny", lambda ids: llama(TINY, WEIGHTS, ids), letters, context=64)


def test_nats_add_up_along_a_text() -> None:
    whole = TINY_MODEL.nats("ab", "cdef")
    assert TINY_MODEL.nats("ab", "cd") + TINY_MODEL.nats("abcd", "ef") == pytest.approx(whole, rel=1e-5)


def test_a_cut_within_a_token_belongs_to_the_continuation() -> None:
    pairs = LanguageModel(
        "pairs", TINY_MODEL.logits, lambda text: [0, *(len(text[i : i + 2]) for i in range(0, len(text), 2))], 64
    )
    assert pairs.nats("abc", "d") == pytest.approx(pairs.nats("ab", "cd"))  # "c" alone is another token than "cd"


def test_only_the_end_of_a_text_longer_than_the_context_is_seen() -> None:
    short = LanguageModel("short", TINY_MODEL.logits, letters, context=4)
    assert short.nats("xyzabc", "d") == pytest.approx(short.nats("qqqqqqabc", "d"))


def test_bits_per_byte_of_a_model_that_knows_nothing_is_the_vocabularys() -> None:
    blind = LanguageModel("blind", lambda ids: np.zeros((*ids.shape, 37)), letters, context=8)
    assert blind.bits_per_byte("some text of any length") == pytest.approx(np.log2(37))


def test_letter_frequencies_prefer_what_they_saw() -> None:
    baseline = Letters.of("aaab")
    assert baseline.nats("", "a") < baseline.nats("", "b") < baseline.nats("", "z")


class _Knows:
    """Answers right unless the text was changed."""

    def __init__(self, name: str, known: Sequence[Question]) -> None:
        self.name, self.known = name, {question.text: question.choices[0] for question in known}

    def nats(self, text: str, continuation: str) -> float:
        return 1.0 if self.known.get(text) == continuation else 5.0 if continuation == " y" else 9.0


QUESTIONS = [Question("He is not here", (" x", " y")), Question("It is late", (" x", " y")), Question("Go", (" x", " y"))]


def test_the_worst_form_of_a_question_counts() -> None:
    found = evaluate([_Knows("one", QUESTIONS), _Knows("other", [])], {"s": QUESTIONS})
    one, other = found["rows"]
    assert one["accuracy"] == 1
    assert one["robust"] < 1  # lower case alone changes a text it knows
    assert one["robust"] <= one["fair"] <= one["accuracy"]
    assert (one["chance"], one["questions"]) == (0.5, 3)
    assert [line["accuracy_win_rate"] for line in found["models"]] == [1.0, 0.0]
    assert other["accuracy"] == 0


def test_same_seed_same_table() -> None:
    scenarios = {name: questions[:3] for name, questions in read_scenarios().items()}
    once, again = (evaluate([TINY_MODEL, Letters.of("the cat")], scenarios, resamples=20) for _ in range(2))
    assert once == again


def test_shipped_questions_have_one_right_answer_and_no_doubles() -> None:
    for questions in read_scenarios().values():
        assert len({question.text + question.choices[0] for question in questions}) == len(questions)
        for question in questions:
            assert len(set(question.choices)) == len(question.choices)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1, 2]", "expected a mapping"),
        ("a: []", "expected questions"),
        ("a: [[x, [y]]]", "at least two continuations"),
        ("a: [[x, y]]", r"a\[0\]"),
        ("a: [", "cannot be read"),
    ],
)
def test_malformed_scenarios_end_with_one_line(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=why) as caught:
        read_scenarios(path)
    assert "\n" not in str(caught.value)


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match="0 models"):
        evaluate([], {"s": QUESTIONS})


@pytest.mark.data
def test_a_trained_model_beats_its_untrained_self(data: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    folder = data / "weights" / "tinyllamas"
    config, weights = load_llama2c(folder / "stories260K.bin")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tok512.model"))
    drawn = random_weights(config, np.random.default_rng(0))

    def model(name: str, own: dict[str, np.ndarray]) -> LanguageModel:
        return LanguageModel(name, lambda ids: llama(config, own, ids), lambda text: [1, *pieces.encode(text)], 512)

    trained, untrained = model("trained", weights), model("untrained", drawn)
    found = evaluate([trained, Letters.of((folder / "expected_greedy_200.txt").read_text())], read_scenarios())
    assert next(line["accuracy_win_rate"] for line in found["models"]) == 1.0
    for row in found["rows"]:
        if row["model"] == "trained":
            assert row["low"] > row["chance"], row
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert trained.bits_per_byte(text) < 0.4 * untrained.bits_per_byte(text)


def test_ask_scores_every_choice() -> None:
    assert ask(TINY_MODEL, QUESTIONS[0]).shape == (2,)
