"""Models in a table: what they are asked, how they answer, what the table says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmlab.cli import main
from llmlab.harness.evaluation.models import letter_frequencies, load_model, untrained
from llmlab.harness.evaluation.multiple_choice import LanguageModel, Letters, Question, ask, evaluate, read_scenarios
from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import random_weights
from llmlab.reference.models.llama import llama, tiny_config
from llmlab.reference.tokenizers._byte_level import byte_alphabet

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
    trained = load_model(data / "weights" / "tinyllamas" / "stories260K.bin")
    found = evaluate([trained, letter_frequencies()], read_scenarios())
    assert next(line["accuracy_win_rate"] for line in found["models"]) == 1.0
    for row in found["rows"]:
        if row["model"] == trained.name:
            assert row["low"] > row["chance"], row
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert trained.bits_per_byte(text) < 0.4 * untrained(trained, 0).bits_per_byte(text)


def test_ask_scores_every_choice() -> None:
    assert ask(TINY_MODEL, QUESTIONS[0]).shape == (2,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Hugging Face publishes it: config.json, safetensors, tokenizer.json."""
    numpy_format = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    sizes = {"hidden_size": 24, "intermediate_size": 29, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    facts = {"model_type": "llama", "max_position_embeddings": 64, "bos_token_id": 256, **sizes}
    (folder / "config.json").write_text(json.dumps(facts))
    config = ModelConfig.from_json(folder)
    numpy_format.save_file(random_weights(config, np.random.default_rng(1), std=0.2), folder / "model.safetensors")
    vocabulary = {character: number for number, character in enumerate(byte_alphabet())}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": bytewise, "decoder": bytewise}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_published_folder_is_asked_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text('s: [["It is not", [" so", " late"]], ["Go", [" on", " off"]]]')
    (tmp_path / "text.txt").write_text("Once upon a time.")
    arguments = [str(folder), "--scenarios", str(tmp_path / "mine.yaml"), "--text", str(tmp_path / "text.txt"), "--json"]
    assert main(["evaluate", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["model"] for line in found["models"]] == ["small", "small, untrained", "letter frequencies"]
    assert len(found["rows"]) == 3
    assert all(4 < line["bits_per_byte"] < 16 for line in found["bits_per_byte"])


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_ends_with_one_line(
    missing: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["evaluate", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
