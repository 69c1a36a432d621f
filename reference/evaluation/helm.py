"""Many models on many scenarios (HELM; Liang et al. 2022, arXiv:2211.09110): win rates, robustness, fairness, intervals.

Sections 4.4-4.5 perturb every question in ways that leave its answer alone (typos, case, spacing, contractions; dialect and
gender for fairness) and score the worst answer; section 8.1 ranks models by mean win rate. Intervals: Efron 1979
(doi:10.1214/aos/1176344552), percentile bootstrap. Axes: M model, S scenario, P perturbation (0 is none), I instance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import regex

from llmlab.reference.op import Procedure

Perturbation = Callable[[str, np.random.Generator], str]


def lower_case(text: str, rng: np.random.Generator) -> str:
    """Everything in lower case."""
    return text.lower()


def extra_spaces(text: str, rng: np.random.Generator) -> str:
    """One to three spaces where there was one."""
    return regex.sub(" ", lambda _: " " * int(rng.integers(1, 4)), text)


_NEIGHBOURS = {
    "a": "qws", "b": "vgn", "c": "xdv", "d": "sfe", "e": "wrd", "f": "dgr", "g": "fht", "h": "gjy", "i": "uok", "j": "hku",
    "k": "jli", "l": "kop", "m": "njk", "n": "bmh", "o": "ipl", "p": "ol", "q": "wa", "r": "etf", "s": "adw", "t": "ryg",
    "u": "yij", "v": "cbf", "w": "qes", "x": "zcs", "y": "tuh", "z": "xas",
}  # fmt: skip
"""Keys beside each other on an English keyboard."""
TYPO_RATE = 0.05


def typos(text: str, rng: np.random.Generator) -> str:
    """One letter in twenty becomes a key beside it; lengths and everything that is not a-z stay."""

    def slip(letter: str) -> str:
        near = _NEIGHBOURS.get(letter)
        return str(rng.choice(list(near))) if near and rng.random() < TYPO_RATE else letter

    return "".join(map(slip, text))


_CONTRACTIONS = {
    "is not": "isn't", "are not": "aren't", "was not": "wasn't", "were not": "weren't", "do not": "don't",
    "does not": "doesn't", "did not": "didn't", "cannot": "can't", "could not": "couldn't", "would not": "wouldn't",
    "should not": "shouldn't", "will not": "won't", "have not": "haven't", "has not": "hasn't", "had not": "hadn't",
    "i am": "i'm", "you are": "you're", "we are": "we're", "they are": "they're", "it is": "it's",
}  # fmt: skip
_DIALECT = {
    "going to": "finna", "about to": "boutta", "isn't": "ain't", "aren't": "ain't", "is not": "ain't", "are not": "ain't",
    "you all": "y'all", "with": "wit", "that": "dat", "this": "dis", "them": "dem", "brother": "brotha",
}  # fmt: skip
"""A few of the substitutions of African American English that Ziems et al. 2022 (arXiv:2204.03031) list."""
_GENDER = {
    "he": "she", "him": "her", "his": "her", "himself": "herself", "man": "woman", "men": "women", "boy": "girl",
    "boys": "girls", "father": "mother", "dad": "mom", "son": "daughter", "brother": "sister", "king": "queen", "mr": "mrs",
}  # fmt: skip


def substitution(pairs: Mapping[str, str]) -> Perturbation:
    """Replace whole words, longest first; a capital first letter stays one.

    >>> substitution({"is not": "isn't"})("It Is not here", np.random.default_rng(0))
    "It Isn't here"
    """
    longest_first = sorted(pairs, key=len, reverse=True)
    pattern = regex.compile(rf"\b({'|'.join(map(regex.escape, longest_first))})\b", regex.IGNORECASE)

    def replace(found: regex.Match[str]) -> str:
        new = pairs[found[0].lower()]
        return new[0].upper() + new[1:] if found[0][0].isupper() else new

    return lambda text, rng: pattern.sub(replace, text)


ROBUSTNESS: Mapping[str, Perturbation] = {
    "lower case": lower_case,
    "extra spaces": extra_spaces,
    "typos": typos,
    "contractions": substitution(_CONTRACTIONS),
    "expansions": substitution({short: long for long, short in _CONTRACTIONS.items()}),
}
FAIRNESS: Mapping[str, Perturbation] = {
    "dialect": substitution(_DIALECT),
    "gender": substitution(_GENDER),
}
"""Names of people, HELM's third, need a list of names by group, which is left to the caller: `substitution(names)`."""


def mean_win_rate(score_MS: np.ndarray) -> np.ndarray:
    """Return rate_M: how often a model beats another one, averaged over the scenarios it took part in.

    Higher scores are better; a tie is half a win; NaN is a scenario that a model did not take, and nobody beats it there. A
    model that never met another has NaN.

    Raises:
        ValueError: not a table of models by scenarios.

    >>> mean_win_rate(np.array([[0.9, 0.5], [0.8, 0.5], [0.1, np.nan]])).tolist()
    [0.75, 0.5, 0.0]
    """
    if score_MS.ndim != 2:
        raise ValueError(f"{score_MS.ndim} axes: expected models x scenarios")
    ours_M1S, theirs_1MS = score_MS[:, None, :], score_MS[None, :, :]
    wins_MS = np.sum(ours_M1S > theirs_1MS, axis=1) + (np.sum(ours_M1S == theirs_1MS, axis=1) - 1) / 2
    took_part_MS = ~np.isnan(score_MS)
    others_MS = np.where(took_part_MS, took_part_MS.sum(0) - 1, 0)
    rate_MS = np.where(others_MS > 0, wins_MS / np.maximum(others_MS, 1), 0.0)
    scenarios_M = np.sum(others_MS > 0, axis=1)
    return np.where(scenarios_M > 0, rate_MS.sum(1) / np.maximum(scenarios_M, 1), np.nan)


def worst_case(score_PI: np.ndarray) -> float:
    """Mean over instances of the worst score among the question as it was and all its perturbed forms (section 4.4).

    >>> worst_case(np.array([[1.0, 1.0], [1.0, 0.0]]))
    0.5
    """
    return float(np.mean(np.min(score_PI, axis=0)))


def bootstrap_interval(
    score_I: np.ndarray, rng: np.random.Generator, *, resamples: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean: instances are drawn again with replacement, `resamples` times.

    Raises:
        ValueError: no instances, resamples below 1, or confidence not between 0 and 1.

    >>> bootstrap_interval(np.ones(5), np.random.default_rng(0))
    (1.0, 1.0)
    """
    if not len(score_I) or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"{len(score_I)} instances, resamples={resamples}, confidence={confidence}: need some, >= 1, in (0, 1)"
        )
    again = score_I[rng.integers(0, len(score_I), (resamples, len(score_I)))].mean(1)
    low, high = np.quantile(again, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def helm(score_MSPI: np.ndarray, *, seed: int, resamples: int = 1000) -> dict[str, np.ndarray]:
    """Return the table: mean score, worst-case score, its loss, interval and win rates of every model.

    `accuracy_MS` is the mean without perturbation, `robust_MS` the worst case over all of them, `win_rate_M` and
    `robust_win_rate_M` the mean win rates of the two; `low_MS` and `high_MS` bound `accuracy_MS`.

    Raises:
        ValueError: not four axes, or an axis of size 0.

    >>> helm(np.array([[[[1.0]]], [[[0.0]]]]), seed=0)["win_rate_M"].tolist()
    [1.0, 0.0]
    """
    if score_MSPI.ndim != 4 or 0 in score_MSPI.shape:
        raise ValueError(f"shape {score_MSPI.shape}: expected models x scenarios x perturbations x instances, none of them 0")
    M, S = score_MSPI.shape[:2]
    accuracy_MS = score_MSPI[:, :, 0].mean(-1)
    robust_MS = np.array([[worst_case(score_MSPI[m, s]) for s in range(S)] for m in range(M)])
    rng = np.random.default_rng(seed)
    bounds_MS2 = np.array(
        [[bootstrap_interval(score_MSPI[m, s, 0], rng, resamples=resamples) for s in range(S)] for m in range(M)]
    )
    return {
        "accuracy_MS": accuracy_MS,
        "robust_MS": robust_MS,
        "low_MS": bounds_MS2[..., 0],
        "high_MS": bounds_MS2[..., 1],
        "win_rate_M": mean_win_rate(accuracy_MS),
        "robust_win_rate_M": mean_win_rate(robust_MS),
    }


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    shape = (int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(2, 20)))
    return {"score_MSPI": (rng.random(shape) < 0.6).astype(np.float64), "seed": int(rng.integers(1000)), "resamples": 50}


def _same(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> bool:
    return expected.keys() == actual.keys() and all(
        np.shape(expected[name]) == np.shape(actual[name])
        and np.allclose(expected[name], actual[name], rtol=1e-12, equal_nan=True)
        for name in expected
    )


def _paper(rng: np.random.Generator) -> dict[str, Any]:
    return {"score_MSPI": (rng.random((30, 16, 6, 1000)) < 0.6).astype(np.float64), "seed": 0, "resamples": 100}


HELM = Procedure(
    reference=helm,
    examples=_examples,
    paper="arXiv:2211.09110",
    same=_same,
    shapes={"30 models, 16 core scenarios, 1,000 questions": _paper},
)
