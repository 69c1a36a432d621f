"""Beam search against every continuation there is, and against transformers' own."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.decoding._loop import without_cache
from llmlab.reference.decoding.beam import Hypothesis, beam, beam_search, log_softmax
from llmlab.reference.decoding.greedy import GREEDY, greedy

SEEDS = st.integers(0, 2**32 - 1)
V = 4


def language(seed: int):  # type: ignore[no-untyped-def]
    """A model with memory of two tokens, and its log-probabilities as a table."""
    table = log_softmax(2 * np.random.default_rng(seed).standard_normal((V, V, V)))
    step = without_cache(lambda ids: np.array([[table[ids[0, -2] if ids.shape[1] > 1 else 0, ids[0, -1]]]]))
    return step, table


def every(table: np.ndarray, max_tokens: int, stop: int, penalty: float) -> list[Hypothesis]:
    """All continuations of [0]: those that end at `stop`, and those of full length."""
    found = []
    for length in range(1, max_tokens + 1):
        for ids in product(range(V), repeat=length):
            if stop in ids[:-1] or (ids[-1] != stop and length < max_tokens):
                continue
            text = (0, 0, *ids)  # the table starts from token 0 before token 0
            logprob = sum(table[a, b, c] for a, b, c in zip(text, text[1:], text[2:]))
            found.append(Hypothesis(ids, logprob, logprob / length**penalty))
    return sorted(found, key=lambda one: -one.score)


@given(SEEDS, st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0]))
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(seed: int, penalty: float) -> None:
    step, table = language(seed)
    found = beam_search(step, [0], beams=V**3, max_tokens=3, stop_ids=[1], length_penalty=penalty)
    best = every(table, 3, 1, penalty)
    for ours, theirs in zip(found[:5], best):
        assert ours.ids == theirs.ids
        assert ours.score == pytest.approx(theirs.score)


@given(SEEDS)
def test_a_score_is_the_log_probability_of_its_tokens(seed: int) -> None:
    step, table = language(seed)
    for one in beam_search(step, [0], beams=3, max_tokens=4, stop_ids=[1], length_penalty=0.7):
        text = (0, 0, *one.ids)
        logprob = sum(table[a, b, c] for a, b, c in zip(text, text[1:], text[2:]))
        assert one.logprob == pytest.approx(logprob)
        assert one.score == pytest.approx(logprob / len(one.ids) ** 0.7)


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy_decoding(seed: int) -> None:
    example = dict(GREEDY.examples(np.random.default_rng(seed)))
    plain = greedy(example["step"], example["prompt"], max_tokens=9, stop_ids=example["stop_ids"])
    (found,) = beam_search(
        example["step"], example["prompt"], beams=1, max_tokens=9, stop_ids=example["stop_ids"], length_penalty=0
    )
    if plain.reason == "length" or plain.ids[-1] in example["stop_ids"]:
        assert found.ids == plain.ids


@given(SEEDS)
def test_two_groups_without_diversity_find_the_same_twice(seed: int) -> None:
    step, _ = language(seed)
    alone = beam_search(step, [0], beams=2, max_tokens=3, stop_ids=[1])
    twice = beam_search(step, [0], beams=4, groups=2, max_tokens=3, stop_ids=[1])
    assert twice == alone + alone


@given(SEEDS, st.sampled_from([0.3, 1.0, 5.0]))
def test_diverse_groups_equal_their_definition(seed: int, diversity: float) -> None:
    """By enumeration over a table: group g maximizes log-probability minus what the groups before it chose at this step."""
    step, table = language(seed)
    found = beam_search(step, [0], beams=3, groups=3, max_tokens=3, diversity=diversity, length_penalty=0)
    texts = [(0, 0)] * 3
    for _ in range(3):
        counts = np.zeros(V)
        for g in range(3):
            token = int(np.argmax(table[texts[g][-2:]] - diversity * counts))
            counts[token] += 1
            texts[g] = (*texts[g], token)
    assert [one.ids for one in found] == [text[2:] for text in texts]


def test_strong_diversity_begins_every_group_with_another_token() -> None:
    step, _ = language(3)
    found = beam_search(step, [0], beams=4, groups=4, max_tokens=2, diversity=100.0)
    assert len({one.ids[0] for one in found}) == 4


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (3, 0.0), (4, 2.0)])
def test_it_equals_transformers(beams: int, penalty: float) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from llmlab.harness.oracles.models.llama import causal_lm

    step = dict(GREEDY.examples(np.random.default_rng(beams)))["step"]
    model = causal_lm(step.config, step.weights, dtype=torch.float64)
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([[1, 5, 7]]),
            max_new_tokens=6,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            length_penalty=penalty,
            early_stopping="never",
            eos_token_id=[2, 11, 30],
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    ours = beam_search(step, [1, 5, 7], beams=beams, max_tokens=6, stop_ids=[2, 11, 30], length_penalty=penalty)
    np.testing.assert_allclose([one.score for one in ours], theirs.sequences_scores.numpy(), rtol=1e-5)
    for one, ids in zip(ours, theirs.sequences.tolist()):
        assert ids[3 : 3 + len(one.ids)] == list(one.ids)


def test_a_poisoned_beam_ranks_last() -> None:
    logits = np.zeros((1, 2, 3))
    logits[0, 0, 1] = np.nan
    score, origin, _ = beam(logits, np.zeros((1, 2)), np.zeros((1, 3), int))
    assert origin[0, :3].tolist() == [1, 1, 1]
    assert np.isfinite(score[0, :3]).all()
    assert np.isnan(score[0, 3])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beams": 3, "groups": 2}, "beams=3, groups=2"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"diversity": -1.0}, "diversity=-1"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, float], named: str) -> None:
    step, _ = language(0)
    with pytest.raises(ValueError, match=named):
        beam_search(step, [0], **{"beams": 2, "max_tokens": 2, **change})  # type: ignore[arg-type]
