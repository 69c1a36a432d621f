"""What only scores of right and wrong have."""

from itertools import combinations

import numpy as np
import pytest

from llmlab.reference.evaluation.classification import (
    brier,
    calibration_error,
    class_f1,
    classification,
    exact_match,
    normalized,
    pass_at_k,
    token_f1,
)

RNG = np.random.default_rng(0)


def test_articles_case_and_punctuation_do_not_count() -> None:
    assert exact_match("The Eiffel-Tower!", ["an eiffeltower"]) == 1
    assert exact_match("Eiffel Tower", ["eiffeltower"]) == 0
    assert normalized("A theatre, an anthem") == "theatre anthem"


def test_several_answers_give_the_best_score() -> None:
    assert exact_match("b", ["a", "b"]) == 1
    assert token_f1("new york city", ["york", "new york"]) == pytest.approx(0.8)


def test_empty_answers_agree_with_each_other_only() -> None:
    assert token_f1("the", [""]) == 1  # an article alone is nothing
    assert token_f1("cat", [""]) == 0


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


def test_pass_at_k_does_not_overflow() -> None:
    assert 0 < pass_at_k(10**6, 3, 1000) < 1


def test_micro_f1_is_accuracy_and_macro_weighs_rare_classes_as_much() -> None:
    true, predicted = np.array([0] * 9 + [1]), np.zeros(10, int)
    assert class_f1(predicted, true, average="micro") == 0.9
    assert class_f1(predicted, true) == pytest.approx((18 / 19 + 0) / 2)


def test_a_forecaster_who_is_right_as_often_as_it_says_is_calibrated() -> None:
    confidence = np.repeat([0.25, 0.75], 8)
    correct = np.array([True] * 2 + [False] * 6 + [True] * 6 + [False] * 2)
    for equal_mass in (False, True):
        assert calibration_error(confidence, correct, bins=2, equal_mass=equal_mass) == 0
    assert calibration_error(confidence, ~correct, bins=2) == pytest.approx(0.5)


def test_more_bins_never_show_less_error_when_they_cut_the_old_ones() -> None:
    confidence, correct = RNG.random(200), RNG.random(200) < 0.5
    errors = [calibration_error(confidence, correct, bins=bins) for bins in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors)


def test_equal_mass_bins_hold_equally_many() -> None:
    confidence = np.array([0.1, 0.11, 0.12, 0.9])
    correct = np.array([True, False, True, True])
    gaps = [abs(0.5 - 0.105), abs(1.0 - 0.51)]
    assert calibration_error(confidence, correct, bins=2, equal_mass=True) == pytest.approx(np.mean(gaps))


def test_edges_belong_to_the_bin_below() -> None:
    assert calibration_error(np.array([0.5, 0.51]), np.array([True, False]), bins=2) == pytest.approx((0.5 + 0.51) / 2)


def test_brier_is_least_in_expectation_for_the_true_probabilities() -> None:
    truth = np.array([0.6, 0.3, 0.1])

    def expected(said: np.ndarray) -> float:
        return sum(p * brier(said[None], np.array([c])) for c, p in enumerate(truth))

    assert all(expected(truth) <= expected(RNG.dirichlet(np.ones(3))) for _ in range(50))


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: exact_match("a", []), "no answers"),
        (lambda: pass_at_k(3, 4, 1), "correct=4"),
        (lambda: pass_at_k(3, 1, 4), "k=4"),
        (lambda: calibration_error(np.array([0.5]), np.array([True]), bins=0), "bins=0"),
        (lambda: calibration_error(np.array([1.5]), np.array([True])), "confidence=1.5"),
        (lambda: classification(np.ones((2, 2)), np.array([0])), "2 hypotheses, 1 labels"),
        (lambda: class_f1(np.array([]), np.array([])), "no hypotheses"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, why) -> None:
    with pytest.raises(ValueError, match=why):
        call()
