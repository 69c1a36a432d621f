"""BLEU (Papineni et al. 2002, doi:10.3115/1073083.1073135) and chrF (Popović 2015, doi:10.18653/v1/W15-3049).

BLEU multiplies clipped n-gram precisions of whole corpora; chrF averages character n-gram precision and recall. Scores are out
of 100. Text is cut into tokens as the WMT campaigns do (mteval-v13a; Post 2018, arXiv:1804.08771, shows why that must be said).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex

from llmlab.reference.evaluation._ngrams import ngrams, paired, shared
from llmlab.reference.op import Procedure


@dataclass(frozen=True)
class Bleu:
    """A BLEU score and what it is made of.

    Attributes:
        score: out of 100.
        precisions: per order, out of 100, smoothed ones included.
        brevity_penalty: exp(1 - r / c) where the output is shorter than its references, else 1.
        hypothesis_tokens, reference_tokens: c and r of the paper's section 2.2.2.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_tokens: int
    reference_tokens: int


_SYMBOLS = regex.compile(r"([{-~\[-` -&(-+:-@/])")
_PUNCTUATION = (
    (regex.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a period or comma, unless a digit is before it
    (regex.compile(r"([.,])([^0-9])"), r" \1 \2"),  # or after it: 3.14 stays whole
    (regex.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokens_13a(text: str) -> list[str]:
    """Cut a line as mteval-v13a does: symbols stand alone, periods and commas stay inside numbers, words split at hyphens.

    >>> tokens_13a("It's 3.14, nearly.")
    ["It's", '3.14', ',', 'nearly', '.']
    """
    for written, meant in _ENTITIES:
        text = text.replace(written, meant)
    text = _SYMBOLS.sub(r" \1 ", f" {text} ")
    for pattern, spaced in _PUNCTUATION:
        text = pattern.sub(spaced, text)
    return text.split()


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    max_order: int = 4,
    smoothing: bool = True,
    effective_order: bool = False,
) -> Bleu:
    """Score a corpus; `references` holds, per hypothesis, every text that would be right.

        BLEU = BP exp(1/N sum_n log p_n),  p_n = matched n-grams / n-grams,  BP = min(1, exp(1 - r / c))      (section 2.3)

    An n-gram matches at most as often as it occurs in the one reference that has most of it; r sums, per hypothesis, the
    length of the reference closest to it, the shorter of two equally close. `smoothing` halves a count of zero once for every
    order that has none (Chen and Cherry 2014, doi:10.3115/v1/W14-3346, method 3). `effective_order` leaves out orders longer
    than every hypothesis, as one does for single sentences.

    Raises:
        ValueError: lists of different lengths or none, a hypothesis without references, or max_order below 1.

    >>> bleu(["the cat sat on a mat"], [["the cat sat on the mat"]], max_order=2).precisions
    (83.33333333333333, 60.0)
    """
    paired(hypotheses, references)
    if max_order < 1:
        raise ValueError(f"max_order={max_order}: must be at least 1")
    matched, total = [0] * max_order, [0] * max_order
    c = r = 0
    for number, (hypothesis, texts) in enumerate(zip(hypotheses, references)):
        if not texts:
            raise ValueError(f"hypothesis {number} has no reference")
        ours, theirs = tokens_13a(hypothesis), [tokens_13a(text) for text in texts]
        c += len(ours)
        r += min((abs(len(text) - len(ours)), len(text)) for text in theirs)[1]
        for n in range(1, max_order + 1):
            most: Counter[Any] = Counter()
            for text in theirs:
                most |= ngrams(text, n)
            matched[n - 1] += shared(ngrams(ours, n), most)
            total[n - 1] += max(0, len(ours) - n + 1)
    brevity_penalty = 1.0 if c >= r else math.exp(1 - r / c) if c else 0.0
    if not any(matched):
        return Bleu(0.0, (0.0,) * max_order, brevity_penalty, c, r)
    precisions, halved = [0.0] * max_order, 1.0
    orders = max_order
    for n, (hits, seen) in enumerate(zip(matched, total)):
        if not seen:
            orders = n if effective_order else max_order
            break
        if not hits and smoothing:
            halved *= 2
        precisions[n] = 100 * hits / seen if hits else 100 / (halved * seen) if smoothing else 0.0
    used = precisions[:orders]
    mean = math.exp(sum(map(math.log, used)) / orders) if all(used) else 0.0
    return Bleu(brevity_penalty * mean, tuple(precisions), brevity_penalty, c, r)


_EDGES = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def _words(text: str) -> list[str]:
    """Words with one punctuation mark cut off: the last character where it is one, else the first (chrF++.py's rule)."""
    found: list[str] = []
    for word in text.split():
        if len(word) > 1 and word[-1] in _EDGES:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in _EDGES:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found


def _counts(text: str, char_order: int, word_order: int) -> list[Counter[Any]]:
    characters, words = "".join(text.split()), _words(text)
    return [ngrams(characters, n) for n in range(1, char_order + 1)] + [ngrams(words, n) for n in range(1, word_order + 1)]


def _f_score(statistics: np.ndarray, beta: float) -> float:
    """F of averaged precision and recall over the orders that both sides have; rows are (hypothesis, reference, matched)."""
    both = statistics[(statistics[:, 0] > 0) & (statistics[:, 1] > 0)]
    if not len(both):
        return 0.0
    precision, recall = float(np.mean(both[:, 2] / both[:, 0])), float(np.mean(both[:, 2] / both[:, 1]))
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def chrf(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    char_order: int = 6,
    word_order: int = 0,
    beta: float = 2.0,
) -> float:
    """Score a corpus by character n-grams, white space left out; `word_order=2` makes it chrF++.

        chrF_b = (1 + b^2) P R / (b^2 P + R)      (section 2; P, R averaged over orders, counts summed over the corpus first)

    Per hypothesis the reference that gives the best score is taken.

    Raises:
        ValueError: lists of different lengths or none, or a hypothesis without references.

    >>> chrf(["abc"], [["abc"]])
    100.0
    """
    paired(hypotheses, references)
    total = np.zeros((char_order + word_order, 3), dtype=np.int64)
    for number, (hypothesis, texts) in enumerate(zip(hypotheses, references)):
        if not texts:
            raise ValueError(f"hypothesis {number} has no reference")
        ours = _counts(hypothesis, char_order, word_order)
        candidates = []
        for text in texts:
            theirs = _counts(text, char_order, word_order)
            # n-grams of an order the reference is too short for are not held against the hypothesis
            rows = [(h.total() if r else 0, r.total(), shared(h, r)) for h, r in zip(ours, theirs)]
            candidates.append(np.array(rows, dtype=np.int64).reshape(-1, 3))
        total += max(candidates, key=lambda rows: _f_score(rows, beta))
    return _f_score(total, beta)


def both(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Corpus BLEU with smoothing, every sentence's own BLEU, chrF and chrF++, as people report them together.

    Raises:
        ValueError: as `bleu`.

    >>> both(["a b c d"], [["a b c d"]])["chrf"]
    100.0
    """
    alone = [bleu([h], [r], effective_order=True).score for h, r in zip(hypotheses, references)]
    return {
        "bleu": bleu(hypotheses, references).score,
        "sentences": np.array(alone),
        "chrf": chrf(hypotheses, references),
        "chrf++": chrf(hypotheses, references, word_order=2),
    }


_VOCABULARY = (
    "the",
    "cat",
    "sat,",
    "on",
    "(a",
    "mat)",
    "3.14",
    "e-mail",
    "don't",
    "ﬁn.",
    "Größe",
    "猫",
    "&amp;",
    "x",
    "--",
    "?",
)


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    def text() -> str:
        return " ".join(rng.choice(_VOCABULARY, int(rng.integers(0, 14))))

    def near(text: str) -> str:
        return " ".join(rng.choice(_VOCABULARY) if rng.random() < 0.25 else word for word in text.split())

    hypotheses = [text() for _ in range(int(rng.integers(1, 6)))]
    many = int(rng.integers(1, 4))
    return {"hypotheses": hypotheses, "references": [[near(h) for _ in range(many)] for h in hypotheses]}


def same_scores(expected: Any, actual: Any) -> bool:
    """Equal keys, and scores to 1e-9 of their size: sums and logarithms in another order."""
    return expected.keys() == actual.keys() and all(
        np.shape(expected[name]) == np.shape(actual[name]) and np.allclose(expected[name], actual[name], rtol=1e-9, atol=1e-9)
        for name in expected
    )


def _many(rng: np.random.Generator) -> dict[str, Any]:
    words = np.array([f"w{n}" for n in range(5000)])

    def text() -> str:
        return " ".join(words[rng.zipf(1.3, 25) % len(words)])

    return {"hypotheses": [text() for _ in range(500)], "references": [[text()] for _ in range(500)]}


BLEU = Procedure(
    reference=both,
    examples=_examples,
    paper="doi:10.3115/1073083.1073135",
    same=same_scores,
    shapes={"500 sentences of 25 words": _many},
)
