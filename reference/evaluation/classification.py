"""Right or wrong, and how sure: scores of answers, classes, programs and stated probabilities.

Exact match and token F1: Rajpurkar et al. 2016 (arXiv:1606.05250, section 6.1). pass@k: Chen et al. 2021 (arXiv:2107.03374,
eq. 1). Expected calibration error: Guo et al. 2017 (arXiv:1706.04599, eq. 3). Brier score: Brier 1950
(doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2). Axes: N example, C class.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import regex

from llmlab.reference.evaluation._ngrams import ngrams, paired, shared
from llmlab.reference.op import Procedure

_ARTICLES = regex.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: SQuAD's rules before any comparison.

    >>> normalized("The  U.S. Army, a giant")
    'us army giant'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the normalized prediction is one of the normalized answers, else 0.

    Raises:
        ValueError: no answers.
    """
    return best(lambda one, other: float(normalized(one) == normalized(other)), prediction, answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the two bags of normalized words, the best over the answers; two empty texts agree.

    Raises:
        ValueError: no answers.

    >>> token_f1("the blue cat", ["a blue dog", "blue"])
    0.6666666666666666
    """
    return best(_bag_f1, prediction, answers)


def best(score: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The prediction's best score over several right answers.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("no answers: nothing to compare with")
    return max(score(prediction, answer) for answer in answers)


def _bag_f1(one: str, other: str) -> float:
    ours, theirs = ngrams(normalized(one).split(), 1), ngrams(normalized(other).split(), 1)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * shared(ours, theirs) / (ours.total() + theirs.total())


def class_f1(predicted_N: np.ndarray, true_N: np.ndarray, *, average: Literal["micro", "macro"] = "macro") -> float:
    """F1 of class labels: 2 tp / (2 tp + fp + fn), per class and averaged (macro) or counts summed first (micro = accuracy).

    Classes are those that occur on either side.

    Raises:
        ValueError: lists of different lengths or none.

    >>> class_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), average="micro")
    0.6666666666666666
    """
    paired(predicted_N, true_N, "labels")
    if average == "micro":
        return float(np.mean(predicted_N == true_N))
    scores = []
    for label in np.union1d(predicted_N, true_N):
        hits = np.sum((predicted_N == label) & (true_N == label))
        scores.append(2 * hits / (np.sum(predicted_N == label) + np.sum(true_N == label)))
    return float(np.mean(scores))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one.

        pass@k = 1 - C(n - c, k) / C(n, k)      (eq. 1), as a product that does not overflow

    Raises:
        ValueError: not 0 <= correct <= samples, or not 1 <= k <= samples.

    >>> pass_at_k(samples=4, correct=1, k=2)
    0.5
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct={correct}: not in 0..samples={samples}")
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: not in 1..samples={samples}")
    if samples - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, *, bins: int = 10, equal_mass: bool = False) -> float:
    """Expected calibration error: how far confidence is from accuracy, averaged over bins by how many fall into each.

        ECE = sum_b |B_b| / n  |accuracy(B_b) - confidence(B_b)|      (eq. 3)

    Bins are (low, high] of equal width, 0 in the first; or, as HELM has it (arXiv:2211.09110, appendix C.2), of equal numbers
    of examples in order of confidence, the first ones one larger where they do not divide.

    Raises:
        ValueError: lists of different lengths or none, bins below 1, or a confidence outside 0..1.

    >>> calibration_error(np.array([1.0, 1.0]), np.array([True, False]))
    0.5
    """
    paired(confidence_N, correct_N, "outcomes")
    if bins < 1:
        raise ValueError(f"bins={bins}: must be at least 1")
    outside = confidence_N[~((confidence_N >= 0) & (confidence_N <= 1))]
    if len(outside):
        raise ValueError(f"confidence={outside[0]}: not in 0..1")
    if equal_mass:
        order = np.argsort(confidence_N, kind="stable")
        members = np.array_split(order, bins)
    else:
        edges = np.linspace(0, 1, bins + 1)
        bin_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
        members = [np.flatnonzero(bin_N == b) for b in range(bins)]
    gaps = [len(m) * abs(correct_N[m].mean() - confidence_N[m].mean()) for m in members if len(m)]
    return float(sum(gaps) / len(confidence_N))


def brier(probability_NC: np.ndarray, true_N: np.ndarray) -> float:
    """Mean squared distance of the stated probabilities from what happened, summed over classes C: 0 at best, 2 at worst.

    Raises:
        ValueError: lists of different lengths or none.

    >>> brier(np.array([[0.5, 0.5]]), np.array([1]))
    0.5
    """
    paired(probability_NC, true_N, "labels")
    happened_NC = np.eye(probability_NC.shape[1], dtype=probability_NC.dtype)[true_N]
    return float(np.mean(np.sum((probability_NC - happened_NC) ** 2, axis=1)))


def classification(probability_NC: np.ndarray, true_N: np.ndarray, *, bins: int = 15) -> dict[str, float]:
    """What is reported of a classifier (a multiple-choice question is one): accuracy, F1, calibration error, Brier score.

    The label of the highest probability is the prediction, the lowest label of equals; that probability is the confidence.

    Raises:
        ValueError: lists of different lengths or none, or bins below 1.

    >>> classification(np.array([[0.9, 0.1]]), np.array([0]))["accuracy"]
    1.0
    """
    paired(probability_NC, true_N, "labels")
    predicted_N = probability_NC.argmax(1)
    confidence_N, correct_N = probability_NC.max(1), predicted_N == true_N
    return {
        "accuracy": class_f1(predicted_N, true_N, average="micro"),
        "macro_f1": class_f1(predicted_N, true_N),
        "calibration_error": calibration_error(confidence_N, correct_N, bins=bins),
        "brier": brier(probability_NC, true_N),
    }


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    questions, classes = int(rng.integers(1, 60)), int(rng.integers(2, 6))
    probability_NC = rng.dirichlet(np.full(classes, 0.4), questions)
    return {"probability_NC": probability_NC, "true_N": rng.integers(0, classes, questions), "bins": int(rng.integers(1, 20))}


def _same(expected: dict[str, float], actual: dict[str, float]) -> bool:
    # torchmetrics computes in float32
    return expected.keys() == actual.keys() and all(abs(expected[name] - actual[name]) <= 1e-5 for name in expected)


def _mmlu(rng: np.random.Generator) -> dict[str, Any]:
    return {"probability_NC": rng.dirichlet(np.ones(4), 14042), "true_N": rng.integers(0, 4, 14042)}


CLASSIFICATION = Procedure(
    reference=classification,
    examples=_examples,
    paper="arXiv:1706.04599",
    same=_same,
    shapes={"as many questions as MMLU, 14,042 of 4 choices": _mmlu},
)
