"""What only tables of models by scenarios have."""

import numpy as np
import pytest

from llmlab.reference.evaluation.helm import FAIRNESS, ROBUSTNESS, bootstrap_interval, helm, mean_win_rate, worst_case

TEXT = "He is not here, and Mr King did not know that his brother cannot come with him."


def perturbed(name: str, text: str = TEXT, seed: int = 0) -> str:
    return {**ROBUSTNESS, **FAIRNESS}[name](text, np.random.default_rng(seed))


def test_win_rates_average_one_half() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (5, 7)).astype(float)  # with ties
    assert mean_win_rate(scores).mean() == pytest.approx(0.5)


def test_only_the_order_within_a_scenario_matters() -> None:
    scores = np.random.default_rng(1).random((4, 3))
    np.testing.assert_allclose(mean_win_rate(scores), mean_win_rate(np.exp(5 * scores) - np.arange(3)))


def test_a_scenario_nobody_else_took_says_nothing() -> None:
    alone = np.array([[0.9, 0.1], [np.nan, 0.2]])
    assert mean_win_rate(alone).tolist() == [0.0, 1.0]
    assert np.isnan(mean_win_rate(np.array([[0.5], [np.nan]]))).all()


def test_the_worst_case_is_never_better_than_any_form_of_the_question() -> None:
    scores = np.random.default_rng(2).random((4, 9))
    assert worst_case(scores) <= scores.mean(1).min()
    assert worst_case(scores[:1]) == pytest.approx(scores[0].mean())


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    bounds = [bootstrap_interval(rng.random(60), rng, resamples=200, confidence=0.9) for _ in range(200)]
    covered = np.mean([low <= 0.5 <= high for low, high in bounds])
    assert 0.82 < covered < 0.96  # 0.9, four standard errors and the percentile bootstrap's known shortness aside


def test_same_seed_same_table() -> None:
    scores = np.random.default_rng(4).random((2, 2, 3, 8))
    one, other = helm(scores, seed=5), helm(scores, seed=5)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(one["low_MS"], helm(scores, seed=6)["low_MS"])


@pytest.mark.parametrize("name", ["lower case", "extra spaces", "typos"])
def test_perturbed_text_keeps_its_words(name: str) -> None:
    assert len(perturbed(name).split()) == len(TEXT.split())


def test_typos_touch_small_letters_only_and_about_one_in_twenty() -> None:
    before = "Mr. K9 wrote: " + "abcdefghij" * 400
    after = perturbed("typos", before)
    changed = [a for a, b in zip(before, after, strict=True) if a != b]
    assert all(letter.islower() for letter in changed)
    assert 0.03 < len(changed) / 4000 < 0.07


def test_expansion_undoes_contraction() -> None:
    assert perturbed("contractions") == "He isn't here, and Mr King didn't know that his brother can't come with him."
    assert perturbed("expansions", perturbed("contractions")) == TEXT


def test_gender_changes_whole_words_and_keeps_capitals() -> None:
    assert perturbed("gender", "He met the mankind of his Father") == "She met the mankind of her Mother"


def test_longer_phrases_go_first() -> None:
    assert perturbed("dialect", "this is not it") == "dis ain't it"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: helm(np.zeros((2, 0, 1, 1)), seed=0), "none of them 0"),
        (lambda: mean_win_rate(np.zeros(3)), "1 axes"),
        (lambda: bootstrap_interval(np.array([]), np.random.default_rng(0)), "0 instances"),
    ],
)
def test_what_is_no_table_is_refused(call, why) -> None:
    with pytest.raises(ValueError, match=why):
        call()
