"""Ranks that talk among themselves: a group numbers its members from 0 and sends under their numbers in the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmlab.reference.parallel._traffic import Traffic


class Group:
    """Some ranks of the whole, in their order; what member i sends to j is counted as `ranks[i]` to `ranks[j]`.

    >>> traffic = Traffic(); pair = Group(traffic, [3, 5])
    >>> received = pair.send(np.zeros(2), 0, 1); dict(traffic.sent_bytes)
    {(3, 5): 16}
    """

    def __init__(self, traffic: Traffic, ranks: Sequence[int]) -> None:
        self.traffic, self.ranks = traffic, list(ranks)

    def send(self, array: np.ndarray, source: int, destination: int) -> np.ndarray:
        """Return a copy as member `destination` receives it."""
        return self.traffic.send(array, self.ranks[source], self.ranks[destination])

    def end_round(self, rounds: int = 1) -> None:
        """Close a round of this group."""
        self.traffic.end_round(rounds)


def at_the_same_time(traffic: Traffic, groups: Sequence[Sequence[int]], work: Callable[[Group, Sequence[int]], None]) -> None:
    """Let disjoint groups work side by side: `work(group, ranks)` for each; rounds are those of the longest."""
    longest = 0
    for ranks in groups:
        own = Traffic()
        work(Group(own, ranks), ranks)
        traffic.messages.update(own.messages)
        traffic.sent_bytes.update(own.sent_bytes)
        longest = max(longest, own.rounds)
    traffic.end_round(longest)
