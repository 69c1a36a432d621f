"""Autoregressive blank infilling, the objective of the first GLM (Du et al. 2021, arXiv:2103.10360, section 2.1, figure 2).

Axes: S token of Part A followed by Part B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Infilling:
    """One training example, arrays over S.

    Attributes:
        ids: Part A, the text with a mask token for each span, then Part B, each span behind a start token.
        targets: what Part B is to answer, each span and an end token; -1 in Part A.
        place: position in the corrupted text, from 1; a span's tokens have that of its mask.
        within: position within the span, from 1; 0 in Part A.
        seen: [S, S], who may see whom: all of Part A, and in Part B what came before.
    """

    ids: np.ndarray
    targets: np.ndarray
    place: np.ndarray
    within: np.ndarray
    seen: np.ndarray


def blank_infilling(
    tokens: Sequence[int], spans: Sequence[tuple[int, int]], order: Sequence[int], *, mask: int, start: int, end: int
) -> Infilling:
    """Blank out `spans` (first, one past the last; in text order) and have them predicted in `order`.

    Raises:
        ValueError: spans that are empty, overlap or leave the text, or an order that is no permutation of them.

    >>> one = blank_infilling([1, 2, 3, 4, 5, 6], [(2, 3), (4, 6)], [1, 0], mask=90, start=91, end=92)
    >>> one.ids.tolist(), one.targets[5:].tolist()
    ([1, 2, 90, 4, 90, 91, 5, 6, 91, 3], [5, 6, 92, 3, 92])
    """
    edges = [0, *(edge for span in spans for edge in span), len(tokens)]
    if any(first >= last for first, last in spans) or edges != sorted(edges):
        raise ValueError(f"spans={list(spans)}: must be non-empty and one after the other in {len(tokens)} tokens")
    if sorted(order) != list(range(len(spans))):
        raise ValueError(f"order={list(order)}: must name each of {len(spans)} spans once")
    ids, places, before = [], [], 0
    for first, last in spans:
        ids += [*tokens[before:first], mask]
        places.append(len(ids))
        before = last
    ids += tokens[before:]
    A = len(ids)
    targets, place, within = [-1] * A, list(range(1, A + 1)), [0] * A
    for which in order:
        first, last = spans[which]
        ids += [start, *tokens[first:last]]
        targets += [*tokens[first:last], end]
        place += [places[which]] * (last - first + 1)
        within += range(1, last - first + 2)
    S = len(ids)
    seen_SS = np.tri(S, dtype=bool)
    seen_SS[:, :A] = True
    return Infilling(np.array(ids), np.array(targets), np.array(place), np.array(within), seen_SS)
