"""ROUGE-N, ROUGE-L and ROUGE-Lsum (Lin 2004, "ROUGE: a package for automatic evaluation of summaries", W04-1013).

How much of a reference a summary holds, by shared n-grams or by the longest common subsequence. Words are lower-case runs of
a-z and 0-9, as in ROUGE-1.5.5 without stemming; other scripts therefore score nothing, there as here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import regex

from llmlab.reference.evaluation._ngrams import ngrams, shared
from llmlab.reference.op import Procedure


@dataclass(frozen=True)
class Score:
    """Precision (of the prediction), recall (of the target) and their harmonic mean, each from 0 to 1."""

    precision: float
    recall: float
    f: float


def words(text: str) -> list[str]:
    """Lower-case runs of a-z and 0-9.

    >>> words("It's the 2nd Mat.")
    ['it', 's', 'the', '2nd', 'mat']
    """
    return regex.findall(r"[a-z0-9]+", text.lower())


def _score(hits: int, predicted: int, target: int) -> Score:
    if not hits:
        return Score(0.0, 0.0, 0.0)
    precision, recall = hits / predicted, hits / target
    return Score(precision, recall, 2 * precision * recall / (precision + recall))


def rouge_n(prediction: str, target: str, n: int) -> Score:
    """Shared n-grams, each as often as it occurs in both (eq. 1 of the paper is its recall).

    Raises:
        ValueError: n below 1.

    >>> rouge_n("the cat", "the cat sat", 1)
    Score(precision=1.0, recall=0.6666666666666666, f=0.8)
    """
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1")
    ours, theirs = ngrams(words(prediction), n), ngrams(words(target), n)
    return _score(shared(ours, theirs), ours.total(), theirs.total())


def common_subsequence(target: Sequence[str], prediction: Sequence[str]) -> list[int]:
    """Positions in the target of one longest common subsequence.

    Of several equally long ones the walk back from the end prefers to drop a word of the target.

    >>> common_subsequence("a b c d".split(), "a c b d".split())
    [0, 1, 3]
    """
    length = np.zeros((len(target) + 1, len(prediction) + 1), dtype=np.int64)
    for i, word in enumerate(target):
        for j, other in enumerate(prediction):
            length[i + 1, j + 1] = length[i, j] + 1 if word == other else max(length[i, j + 1], length[i + 1, j])
    i, j = len(target), len(prediction)
    positions: list[int] = []
    while i and j:
        if target[i - 1] == prediction[j - 1]:
            positions.append(i - 1)
            i, j = i - 1, j - 1
        elif length[i, j - 1] > length[i - 1, j]:
            j -= 1
        else:
            i -= 1
    return positions[::-1]


def rouge_l(prediction: str, target: str) -> Score:
    """Longest common subsequence of the whole texts, line breaks ignored (section 3.1).

    >>> rouge_l("police kill the gunman", "police killed the gunman").f
    0.75
    """
    ours, theirs = words(prediction), words(target)
    return _score(len(common_subsequence(theirs, ours)), len(ours), len(theirs))


def rouge_lsum(prediction: str, target: str) -> Score:
    """Union of the common subsequences of every target line with all lines of the prediction (section 3.2).

    The paper counts the union alone; ROUGE-1.5.5 and everything since counts a word at most as often as either text has it,
    and so does this.

    >>> rouge_lsum("w1 w2 w6 w7 w8\\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5").recall  # the paper's own example
    0.8
    """
    ours, theirs = ([words(line) for line in text.split("\n") if line] for text in (prediction, target))
    left_ours, left_theirs = (Counter(word for line in lines for word in line) for lines in (ours, theirs))
    predicted, wanted = left_ours.total(), left_theirs.total()
    hits = 0
    for line in theirs:
        for position in sorted({p for other in ours for p in common_subsequence(line, other)}):
            word = line[position]
            if left_ours[word] > 0 and left_theirs[word] > 0:
                left_ours[word] -= 1
                left_theirs[word] -= 1
                hits += 1
    return _score(hits, predicted, wanted)


def rouge(prediction: str, targets: Sequence[str]) -> dict[str, Score]:
    """ROUGE-1, 2, L and Lsum; of several targets the one with the best F is taken, for each score by itself.

    Raises:
        ValueError: no target.

    >>> rouge("a b", ["a b", "c"])["rouge1"].f
    1.0
    """
    if not targets:
        raise ValueError("no target: nothing to compare with")
    each = {
        "rouge1": lambda target: rouge_n(prediction, target, 1),
        "rouge2": lambda target: rouge_n(prediction, target, 2),
        "rougeL": lambda target: rouge_l(prediction, target),
        "rougeLsum": lambda target: rouge_lsum(prediction, target),
    }
    return {name: max(map(score, targets), key=lambda found: found.f) for name, score in each.items()}


_WORDS = ("the", "Cat", "sat", "on", "a", "mat.", "2nd", "it's", "naïve", "\n", "", "dog\n")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    def text() -> str:
        return " ".join(rng.choice(_WORDS, int(rng.integers(0, 16))))

    return {"prediction": text(), "targets": [text() for _ in range(int(rng.integers(1, 4)))]}


def _same(expected: dict[str, Score], actual: dict[str, Score]) -> bool:
    return expected.keys() == actual.keys() and all(
        np.allclose(astuple(expected[name]), astuple(actual[name]), rtol=1e-12) for name in expected
    )


def _many(rng: np.random.Generator) -> dict[str, Any]:
    words = np.array([f"w{n}" for n in range(5000)])

    def text() -> str:
        return " ".join(words[rng.zipf(1.3, 25) % len(words)])

    return {"prediction": "\n".join(text() for _ in range(3)), "targets": ["\n".join(text() for _ in range(3))]}


ROUGE = Procedure(
    reference=rouge,
    examples=_examples,
    paper="W04-1013 (Lin 2004)",
    same=_same,
    shapes={"a summary of 75 words": _many},
)
