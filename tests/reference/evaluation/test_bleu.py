"""What only BLEU and chrF have."""

import math

import pytest

from llmlab.reference.evaluation.bleu import bleu, chrf, tokens_13a

PAPER = [
    "It is a guide to action which ensures that the military always obeys the commands of the party.",
    "It is to insure the troops forever hearing the activity guidebook that party direct.",
]
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
    "It is the practical guide for the army always to heed the directions of the party.",
]


def test_the_papers_repeated_word_counts_only_as_often_as_a_reference_has_it() -> None:
    found = bleu(["the the the the the the the"], [["The cat is on the mat.", "There is a cat on the mat."]], max_order=1)
    assert found.precisions[0] == pytest.approx(100 * 1 / 7)  # "The" is another word: 13a keeps case


def test_the_papers_first_candidate_is_the_better_one() -> None:
    first, second = (bleu([text], [REFERENCES], effective_order=True).score for text in PAPER)
    assert first > 2 * second


def test_the_text_itself_scores_a_hundred_and_another_language_nothing() -> None:
    assert bleu([PAPER[0]], [[PAPER[0]]]).score == pytest.approx(100)
    assert chrf([PAPER[0]], [[PAPER[0]]], word_order=2) == 100
    assert bleu(["猫"], [["a b c d"]]).score == 0 == chrf(["猫"], [["a b c d"]])


def test_short_output_is_punished_and_long_output_is_not() -> None:
    whole = "a b c d e f g h"
    assert bleu(["a b c d"], [[whole]]).brevity_penalty == pytest.approx(math.exp(1 - 8 / 4))
    assert bleu([whole + " i j"], [[whole]]).brevity_penalty == 1


def test_closest_reference_length_is_taken_the_shorter_of_two() -> None:
    assert bleu(["a b c"], [["a b c d", "a b"]]).reference_tokens == 2


def test_corpus_score_is_not_the_mean_of_sentences() -> None:
    hypotheses, references = ["a b c d e", "x"], [["a b c d e"], ["y"]]
    alone = [bleu([h], [r], effective_order=True).score for h, r in zip(hypotheses, references)]
    assert bleu(hypotheses, references).score > sum(alone) / 2


def test_without_smoothing_a_missing_order_makes_it_zero() -> None:
    assert bleu(["a b x c"], [["a b y c"]], smoothing=False).score == 0
    assert bleu(["a b x c"], [["a b y c"]]).score > 0


def test_numbers_stay_whole_and_hyphens_split() -> None:
    assert tokens_13a("1,000.5 e-mail 3-4 &quot;x&quot;") == ["1,000.5", "e-mail", "3", "-", "4", '"', "x", '"']


def test_recall_weighs_four_times_as_much_as_precision() -> None:
    short, long = chrf(["abc"], [["abcdef"]]), chrf(["abcdef"], [["abc"]])
    assert short < long


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: bleu([], []), "no hypotheses"),
        (lambda: bleu(["a"], []), "1 hypotheses, 0 references"),
        (lambda: bleu(["a"], [[]]), "hypothesis 0 has no reference"),
        (lambda: bleu(["a"], [["a"]], max_order=0), "max_order=0"),
        (lambda: chrf(["a", "b"], [["a"], []]), "hypothesis 1 has no reference"),
    ],
)
def test_nothing_to_compare_is_refused(call, why) -> None:
    with pytest.raises(ValueError, match=why):
        call()


def test_nltk_agrees_without_smoothing() -> None:
    translate = pytest.importorskip("nltk.translate.bleu_score", reason="needs nltk")
    hypotheses, references = PAPER, [REFERENCES, REFERENCES]
    theirs = translate.corpus_bleu([[tokens_13a(r) for r in rs] for rs in references], [tokens_13a(h) for h in hypotheses])
    assert bleu(hypotheses, references, smoothing=False).score == pytest.approx(100 * theirs)
