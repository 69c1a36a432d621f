"""What only the unigram language model has."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.tokenizers.unigram import (
    UNIGRAM,
    Vocabulary,
    edges,
    expectation_maximization,
    expected_counts,
    log_probability,
    losses,
    nbest,
    piece_texts,
    sample,
    seeds,
    tokenize,
    train,
    viterbi,
)

PIECES = ("", "a", "b", "c", "ab", "bc", "abc", "ca", "aa", "aaa")
SCORES = st.lists(st.floats(-9, -0.5), min_size=len(PIECES), max_size=len(PIECES))
TEXTS = st.text(alphabet="abcx", max_size=8)
COUNTS = st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=6), st.integers(1, 5), min_size=1, max_size=5)


def made(scores: list[float]) -> Vocabulary:
    return Vocabulary(PIECES, np.array(scores), 0, min(scores) - 10.0)


def segmentations(vocabulary: Vocabulary, text: str) -> Iterator[tuple[list[int], float]]:
    """All of them, by trying every first piece."""
    if not text:
        yield [], 0.0
    for end, number, score in edges(vocabulary, text, 0) if text else []:
        for rest, more in segmentations(vocabulary, text[end:]):
            yield [number, *rest], score + more


def log_likelihood(vocabulary: Vocabulary, counts: dict[str, int]) -> float:
    return sum(times * log_probability(vocabulary, word) for word, times in counts.items())


@given(scores=SCORES, text=TEXTS)
def test_the_best_of_all_segmentations_is_found(scores: list[float], text: str) -> None:
    vocabulary = made(scores)
    everything = [*segmentations(vocabulary, text)]
    best = max(score for _, score in everything)
    found = next(score for ids, score in everything if ids == tokenize(vocabulary, text))
    assert found == pytest.approx(best, abs=1e-9)


@given(scores=SCORES, text=TEXTS, most=st.integers(1, 12))
def test_the_n_best_are_the_first_n_of_all(scores: list[float], text: str, most: int) -> None:
    vocabulary = made(scores)
    everything = sorted((score for _, score in segmentations(vocabulary, text)), reverse=True)
    found = nbest(vocabulary, text, most)
    assert [score for _, score in found] == pytest.approx(everything[:most], abs=1e-9)
    assert len({tuple(ids) for ids, _ in found}) == min(most, len(everything))


@given(scores=SCORES, counts=COUNTS)
def test_expected_counts_are_those_of_all_segmentations(scores: list[float], counts: dict[str, int]) -> None:
    vocabulary = made(scores)
    expected_V = np.zeros(len(PIECES))
    for word, times in counts.items():
        everything = [*segmentations(vocabulary, word)]
        total = np.logaddexp.reduce([score for _, score in everything])
        assert log_probability(vocabulary, word) == pytest.approx(total, abs=1e-9)
        for ids, score in everything:
            for number in ids:
                expected_V[number] += times * np.exp(score - total)
    np.testing.assert_allclose(expected_counts(vocabulary, counts), expected_V, rtol=1e-9, atol=1e-12)


@given(scores=SCORES, counts=COUNTS)
def test_an_em_step_never_lowers_the_likelihood(scores: list[float], counts: dict[str, int]) -> None:
    vocabulary = made(scores)
    normalized = Vocabulary(PIECES, np.array([0.0, *(np.array(scores[1:]) - np.logaddexp.reduce(scores[1:]))]), 0, -30.0)
    after = expectation_maximization(normalized, counts)
    assert log_likelihood(after, counts) >= log_likelihood(normalized, counts) - 1e-9
    assert np.exp(after.scores[1:]).sum() == pytest.approx(1.0)
    assert vocabulary.pieces[1:] == after.pieces[1:]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_samples_come_as_often_as_their_probability_says(alpha: float) -> None:
    vocabulary = made([0, -2, -3, -2.5, -3, -4, -4.5, -3, -3, -5.0])
    everything = [*segmentations(vocabulary, "aabca")]
    weights = np.exp(alpha * np.array([score for _, score in everything]))
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(sample(vocabulary, "aabca", alpha=alpha, rng=rng)) for _ in range(4000))
    frequencies = [drawn[tuple(ids)] / 4000 for ids, _ in everything]
    errors = np.sqrt(weights / weights.sum() / 4000)  # five of its standard deviations, each
    assert np.all(np.abs(frequencies - weights / weights.sum()) < 5 * errors)


def test_sentencepiece_samples_by_the_same_law() -> None:
    spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    pytest.importorskip("google.protobuf", reason="needs protobuf")
    from llmlab.harness.oracles.tokenizers.unigram import processor

    vocabulary = Vocabulary(PIECES, np.array([0, -2, -3.1, -2.5, -3.3, -4.05, -4.5, -3.7, -3.02, -5.0], np.float32), 0, -15.0)
    theirs = processor(vocabulary)
    everything = [*segmentations(vocabulary, "aabca")]
    weights = np.exp(0.4 * np.array([score for _, score in everything]))
    spm.set_random_generator_seed(1)
    drawn = Counter(tuple(theirs.encode("aabca", enable_sampling=True, alpha=0.4, nbest_size=-1)) for _ in range(4000))
    frequencies = [drawn[tuple(ids)] / 4000 for ids, _ in everything]
    assert np.all(np.abs(frequencies - weights / weights.sum()) < 5 * np.sqrt(weights / weights.sum() / 4000))
    best = theirs.nbest_encode_as_ids("aabca", 5)
    assert best == [ids for ids, _ in nbest(vocabulary, "aabca", 5)]


def test_unknown_characters_are_last_resorts() -> None:
    vocabulary = Vocabulary(("", "a", "bx"), np.array([0.0, -1.0, -9.0]), 0, -19.0)
    assert tokenize(vocabulary, "abxc") == [1, 2, 0]
    assert viterbi(vocabulary, "xa") == [(0, 1, 0), (1, 2, 1)]


def test_a_user_defined_piece_beats_everything() -> None:
    pieces, scores_V = ("", "a", "b", "ab"), np.array([0.0, -1.0, -1.0, -50.0])
    assert tokenize(Vocabulary(pieces, scores_V, 0, -60.0), "ab") == [1, 2]
    assert tokenize(Vocabulary(pieces, scores_V, 0, -60.0, frozenset([3])), "ab") == [3]


def test_ties_go_to_the_piece_that_starts_first() -> None:
    vocabulary = Vocabulary(("", "a", "aa"), np.array([0.0, -1.0, -1.0]), 0, -11.0)
    assert piece_texts(vocabulary, tokenize(vocabulary, "aaa")) == ["a", "aa"]


def test_the_dtype_of_the_scores_decides_near_ties() -> None:
    """Past 2**24 a sum rounded to float32 loses a unit with each step: two pieces at -1 then beat one at -1.5."""
    for dtype, expected in ((np.float32, [1, 2, 3]), (np.float64, [1, 4])):
        scores = np.array([0.0, -(2.0**24), -1.0, -1.0, -1.5], dtype)
        assert tokenize(Vocabulary(("", "x", "a", "b", "ab"), scores, 0, -(2.0**25)), "xab") == expected


def test_training_finds_what_words_are_made_of() -> None:
    parts = ("low", "est", "newer", "wid")
    counts = {first + second + third: 5 for first in parts for second in parts for third in parts}
    learned = train(counts, 1 + 10 + 4, seed_size=200)
    assert set(parts) <= set(learned.pieces)
    assert len(learned.pieces) == 15
    assert log_likelihood(learned, counts) == pytest.approx(64 * 5 * 3 * np.log(1 / 4))


def test_training_keeps_every_character() -> None:
    counts = {"abcdefgh": 1, "zz": 3, "abab": 9}
    learned = train(counts, 1 + 9)
    assert all(0 not in tokenize(learned, word) for word in counts)
    with pytest.raises(ValueError, match="vocab_size=5"):
        train(counts, 5)


def test_a_piece_that_is_never_best_costs_nothing() -> None:
    vocabulary = made([0, -1, -1, -1, -0.5, -0.5, -9, -9, -9, -9])
    fall = losses(vocabulary, {"ab": 3, "bc": 1})
    assert fall["abc"] == fall["aaa"] == 0.0
    assert fall["ab"] == pytest.approx(3 * (-0.5 - -2.0))


def test_seeds_are_characters_and_what_recurs() -> None:
    found = seeds({"abab": 1, "xyz": 1}, 100, 8)
    assert set(found) == {*"abxyz", "ab"}


def test_steps_down_the_trie_grow_linearly_with_one_letter() -> None:
    vocabulary = Vocabulary(("", "a", "aaaaaaaa"), np.array([0.0, -1.0, -1.0]), 0, -11.0)

    def steps(length: int) -> int:
        seen = [0]

        def count() -> None:
            seen[0] += 1

        viterbi(vocabulary, "a" * length, count=count)
        return seen[0]

    assert steps(4000) <= 2 * steps(2000) + 64


def test_the_comparison_refuses_one_wrong_piece() -> None:
    example = UNIGRAM.examples(np.random.default_rng(3))
    ids = tokenize(**example)
    assert UNIGRAM.same(ids, list(ids))
    assert not UNIGRAM.same(ids, [*ids, 1])
