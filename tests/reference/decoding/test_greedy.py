"""What only greedy decoding has."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding._loop import Generated, Stop, generate, without_cache
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep, greedy
from llmlab.reference.decoding.sampling import sampling
from llmlab.reference.models.llama import llama

SEEDS = st.integers(0, 2**32 - 1)


def counting(new, state):  # type: ignore[no-untyped-def]
    """Ten tokens; each is followed by the next."""
    return np.eye(10)[(new[-1] + 1) % 10], None


@given(SEEDS)
def test_the_cache_changes_nothing(seed: int) -> None:
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    cached = example.pop("step")
    assert isinstance(cached, LlamaStep)
    again = without_cache(lambda ids_BT: llama(cached.config, cached.weights, ids_BT))
    assert greedy(cached, **example) == greedy(again, **example)


@given(SEEDS, st.integers(0, 20))
def test_fewer_tokens_are_a_prefix(seed: int, fewer: int) -> None:
    example = dict(GREEDY.examples(np.random.default_rng(seed))) | {"max_tokens": 20, "stop_ids": []}
    whole = greedy(**example)
    assert greedy(**example | {"max_tokens": fewer}) == Generated(whole.ids[:fewer], "length")
    assert len(whole.ids) == 20


@given(SEEDS)
def test_continuing_where_it_stopped_gives_the_same_text(seed: int) -> None:
    example = dict(GREEDY.examples(np.random.default_rng(seed))) | {"max_tokens": 12, "stop_ids": []}
    whole = greedy(**example)
    head = greedy(**example | {"max_tokens": 5})
    rest = greedy(**example | {"max_tokens": 7, "prompt": [*example["prompt"], *head.ids]})
    assert head.ids + rest.ids == whole.ids


def test_each_way_to_stop_includes_what_stopped_it() -> None:
    def decode(ids: object) -> str:
        return "".join(map(str, ids))  # type: ignore[call-overload]

    assert greedy(counting, [1], max_tokens=3) == Generated((2, 3, 4), "length")
    assert greedy(counting, [1], max_tokens=9, stop_ids=[5, 8]) == Generated((2, 3, 4, 5), "id")
    assert greedy(counting, [1], max_tokens=9, stop_sequences=[[9, 9], [3, 4]]) == Generated((2, 3, 4), "sequence")
    assert greedy(counting, [1], max_tokens=9, stop_texts=["45"], decode=decode) == Generated((2, 3, 4, 5), "text")
    assert greedy(counting, [1], max_tokens=0) == Generated((), "length")


def test_a_stop_in_the_prompt_does_not_stop() -> None:
    assert greedy(counting, [4, 5], max_tokens=2, stop_ids=[5], stop_sequences=[[5, 6]]).ids == (6, 7)


def test_of_equal_logits_the_lowest_id_is_taken() -> None:
    assert greedy(lambda new, state: (np.array([0.0, 2.0, 2.0]), None), [0], max_tokens=2).ids == (1, 1)


def test_cold_sampling_is_greedy() -> None:
    example = dict(GREEDY.examples(np.random.default_rng(11))) | {"max_tokens": 15}
    rng = np.random.default_rng(0)

    def cold(logits_V: np.ndarray) -> int:
        return int(sampling(logits_V[None], rng.random(1), temperature=1e-6)[1][0])

    sampled = generate(example["step"], example["prompt"], cold, Stop(15, frozenset(example["stop_ids"])))
    assert sampled == greedy(**example)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": []}, "prompt"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"stop_sequences": [[]]}, "empty"),
        ({"stop_texts": ["a"]}, "decode"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        greedy(**{"step": counting, "prompt": [1], "max_tokens": 2, **change})  # type: ignore[arg-type]


def test_logits_that_are_not_numbers_have_no_largest() -> None:
    with pytest.raises(ValueError, match="NaN"):
        greedy(lambda new, state: (np.array([0.0, np.nan]), None), [0], max_tokens=1)


def test_the_comparison_refuses_another_token() -> None:
    result = greedy(counting, [1], max_tokens=3)
    assert GREEDY.same(result, Generated((2, 3, 4), "length"))
    assert not GREEDY.same(result, Generated((2, 3, 5), "length"))
    assert not GREEDY.same(result, Generated((2, 3, 4), "id"))


@pytest.mark.data
def test_a_trained_model_stops_at_a_word(data: Path) -> None:
    from llmlab.reference.models._weights import load_llama2c

    folder = data / "weights" / "tinyllamas"
    if not folder.is_dir():
        pytest.skip("needs weights/tinyllamas under LLMLAB_DATA")
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(next(folder.glob("*tok512.model"))))
    published = (folder / "expected_greedy_200.txt").read_text()
    word = published.split()[12]
    told = greedy(
        LlamaStep(*load_llama2c(folder / "stories260K.bin")),
        [1],
        max_tokens=200,
        stop_texts=[word],
        decode=lambda ids: processor.decode(list(ids)),
    )
    assert told.reason == "text"
    text = processor.decode(list(told.ids))
    assert published.startswith(text)
    assert text.count(word) == 1
    assert word not in processor.decode(list(told.ids[:-1]))
