"""What only ROUGE has."""

from itertools import combinations

import numpy as np
import pytest

from llmlab.reference.evaluation.rouge import common_subsequence, rouge, rouge_l, rouge_lsum, rouge_n, words


def test_the_papers_sentences_score_what_it_says() -> None:
    # section 3.1: "police kill the gunman" and "the gunman kill police" against "police killed the gunman"
    assert rouge_l("police kill the gunman", "police killed the gunman").f == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police killed the gunman").f == pytest.approx(0.5)
    assert rouge_l("the gunman police killed", "police killed the gunman").f == pytest.approx(0.5)


def test_bigrams_cannot_tell_the_papers_two_sentences_apart() -> None:
    target = "police killed the gunman"
    assert rouge_n("police kill the gunman", target, 2) == rouge_n("the gunman kill police", target, 2)


def test_subsequence_is_the_longest_by_enumeration() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        one, other = (list(rng.choice(list("abc"), rng.integers(0, 7))) for _ in range(2))
        subsequences = {
            tuple(one[i] for i in chosen) for n in range(len(one) + 1) for chosen in combinations(range(len(one)), n)
        }
        others = {tuple(other[i] for i in c) for n in range(len(other) + 1) for c in combinations(range(len(other)), n)}
        found = common_subsequence(one, other)
        assert len(found) == max(map(len, subsequences & others))
        assert tuple(one[i] for i in found) in others


def test_a_word_counts_once_however_many_lines_hold_it() -> None:
    assert rouge_lsum("a\na\na", "a").precision == pytest.approx(1 / 3)


def test_line_breaks_matter_to_lsum_alone() -> None:
    one, other = "a b\nc d", "c d\na b"
    assert rouge_l(one, other).f < 1
    assert rouge_lsum(one, other).f == 1


def test_precision_and_recall_swap_with_the_texts() -> None:
    one, other = "the cat sat", "the cat on the mat"
    for n in (1, 2):
        forward, back = rouge_n(one, other, n), rouge_n(other, one, n)
        assert (forward.precision, forward.recall) == (back.recall, back.precision)


def test_other_scripts_have_no_words() -> None:
    assert words("猫 ist naïve") == ["ist", "na", "ve"]
    assert rouge("猫", ["猫"])["rouge1"].f == 0


def test_nothing_to_compare_with_is_refused() -> None:
    with pytest.raises(ValueError, match="no target"):
        rouge("a", [])
    with pytest.raises(ValueError, match="n=0"):
        rouge_n("a", "a", 0)
