"""What only WordPiece has."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.reference.tokenizers.wordpiece import (
    CONTINUES,
    UNKNOWN,
    Vocabulary,
    decode,
    gain,
    log_likelihood,
    split_word,
    tokenize,
    train,
)

COUNTS = st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=6), st.integers(1, 9), min_size=1, max_size=6)
BOUND = {"qu": 20, "er": 100, "ex": 100, "ar": 100, "ax": 101}


def spell(word: str) -> list[str]:
    return [word[0], *(CONTINUES + character for character in word[1:])]


def join(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            out.append(pair[0] + pair[1].removeprefix(CONTINUES))
            place += 2
        else:
            out.append(word[place])
            place += 1
    return out


def units(words: list[list[str]], weights: list[int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for word, weight in zip(words, weights):
        for unit in word:
            found[unit] += weight
    return found


@given(counts=COUNTS, room=st.integers(1, 8))
def test_every_join_is_the_one_that_raises_the_likelihood_most(counts: dict[str, int], room: int) -> None:
    """Each candidate is really joined in the whole corpus and the likelihood counted anew."""
    words, weights = [spell(word) for word in counts], list(counts.values())
    alphabet = {unit for word in words for unit in word}
    learned = [*train(counts, 2 + len(alphabet) + room).ids][2 + len(alphabet) :]
    for piece in learned:
        before = log_likelihood(units(words, weights))
        candidates = {pair for word in words for pair in pairwise(word)}
        after = {pair: log_likelihood(units([join(word, pair) for word in words], weights)) for pair in candidates}
        best = max(after.values())
        making = [pair for pair in candidates if pair[0] + pair[1].removeprefix(CONTINUES) == piece]
        taken = max(making, key=after.__getitem__)
        if after[taken] < best - 1e-8:  # a join whose text was a piece already came in between
            return
        assert after[taken] > before
        words = [join(word, taken) for word in words]


@given(counts=COUNTS)
def test_the_gain_is_the_difference_of_two_likelihoods(counts: dict[str, int]) -> None:
    words, weights = [spell(word) for word in counts], list(counts.values())
    before = units(words, weights)
    for pair in {pair for word in words for pair in pairwise(word)}:
        after = units([join(word, pair) for word in words], weights)
        times = sum(before.values()) - sum(after.values())
        formula = gain(times, before[pair[0]], before[pair[1]], sum(before.values()), same=pair[0] == pair[1])
        assert formula == pytest.approx(log_likelihood(after) - log_likelihood(before), abs=1e-9)


def test_likelihood_prefers_a_bound_pair_to_a_frequent_one() -> None:
    """q is always followed by u; a and x are frequent, together hardly more than by chance. BPE would join a and x."""
    assert [*train(BOUND, 2 + 6 + 1).ids][-1] == "qu"


def test_hugging_face_trains_wordpiece_by_frequency() -> None:
    """Its WordPieceTrainer is its BPE trainer with "##": the most frequent pair, not the likeliest. The paper is right."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=2 + 9 + 1, special_tokens=["[PAD]", UNKNOWN], show_progress=False)
    theirs.train_from_iterator([" ".join([word] * times) for word, times in BOUND.items()], trainer)
    assert "ax" in theirs.get_vocab()
    assert "qu" not in theirs.get_vocab()


def test_training_stops_when_no_join_helps() -> None:
    assert len(train({"a": 5, "b": 5}, 100).ids) == 4
    independent = {"ab": 1, "ac": 1, "db": 1, "dc": 1}
    assert len(train(independent, 100, threshold=10.0).ids) == 2 + 4
    with pytest.raises(ValueError, match="vocab_size=3"):
        train(independent, 3)


def test_one_gap_makes_the_whole_word_unknown() -> None:
    vocabulary = Vocabulary({UNKNOWN: 0, "a": 1, "##b": 2})
    assert tokenize(vocabulary, "ab abz") == [1, 2, 0]


def test_greedy_can_miss_a_segmentation_that_exists() -> None:
    assert split_word(Vocabulary({UNKNOWN: 0, "abc": 1, "ab": 2, "##cd": 3}), "abcd") == [0]


def test_a_word_longer_than_allowed_is_unknown() -> None:
    vocabulary = Vocabulary({UNKNOWN: 0, "a": 1, "##a": 2})
    assert tokenize(vocabulary, "a" * 100) == [1] + [2] * 99
    assert tokenize(vocabulary, "a" * 101) == [0]


@given(words=st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=5))
def test_decoding_undoes_encoding_of_plain_words(words: list[str]) -> None:
    vocabulary = train(Counter(words), 40)
    assert decode(vocabulary, tokenize(vocabulary, " ".join(words))) == " ".join(words)
    with pytest.raises(ValueError, match="id=999"):
        decode(vocabulary, [999])


def test_look_ups_grow_linearly_with_a_word() -> None:
    vocabulary = Vocabulary({UNKNOWN: 0, "aaaa": 1, "##a": 2, "##aaaaaa": 3}, longest_word=10**9)

    def looks(length: int) -> int:
        seen = [0]

        def count() -> None:
            seen[0] += 1

        split_word(vocabulary, "a" * length, count=count)
        return seen[0]

    assert looks(4000) <= 2 * looks(2000) + 16
