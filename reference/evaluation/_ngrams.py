"""Runs of neighbouring tokens, counted: what BLEU, chrF and ROUGE compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from typing import Any


def ngrams(tokens: Sequence[Any], n: int) -> Counter[tuple[Any, ...]]:
    """Count every run of n neighbouring tokens; of a string, of n characters.

    >>> sorted(ngrams("abab", 2).items())
    [(('a', 'b'), 2), (('b', 'a'), 1)]
    """
    return Counter(zip(*(tokens[start:] for start in range(n))))


def shared(one: Counter[Any], other: Counter[Any]) -> int:
    """Size of the intersection of two multisets: an n-gram matches as often as it occurs in both."""
    return (one & other).total()


def paired(hypotheses: Sized, references: Sized, name: str = "references") -> None:
    """Refuse lists of different lengths, or empty ones.

    Raises:
        ValueError: the lengths differ, or there is nothing to compare.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} {name}")
    if not len(hypotheses):
        raise ValueError("no hypotheses: nothing to score")
