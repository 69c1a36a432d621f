"""What a distributed algorithm sends: messages and bytes between ranks, counted where they happen.

A reference holds one array per rank in a list and moves data only through `Traffic.send`, so the counts are those of the
algorithm and not of an argument about it. Rounds are what can go on at the same time: a rank sends and receives once in each.
Units: bytes, ranks from 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Traffic:
    """Counts of everything that was sent.

    Attributes:
        messages: (source, destination) -> messages.
        sent_bytes: (source, destination) -> bytes.
        rounds: communication steps that had to follow each other.

    >>> traffic = Traffic()
    >>> received = traffic.send(np.ones(3, dtype=np.float32), 0, 1); traffic.end_round()
    >>> traffic.bytes_sent_by(0), traffic.bytes_received_by(1), traffic.rounds
    (12, 12, 1)
    """

    messages: Counter[tuple[int, int]] = field(default_factory=Counter)
    sent_bytes: Counter[tuple[int, int]] = field(default_factory=Counter)
    rounds: int = 0

    def send(self, array: np.ndarray, source: int, destination: int) -> np.ndarray:
        """Return a copy as the destination receives it; what stays on its rank is no message."""
        if source != destination:
            self.messages[source, destination] += 1
            self.sent_bytes[source, destination] += array.nbytes
        return array.copy()

    def end_round(self, rounds: int = 1) -> None:
        """Close a round: what was sent since the last call went on at the same time."""
        self.rounds += rounds

    def bytes_sent_by(self, rank: int) -> int:
        """Bytes this rank sent to others."""
        return sum(size for (source, _), size in self.sent_bytes.items() if source == rank)

    def bytes_received_by(self, rank: int) -> int:
        """Bytes this rank received from others."""
        return sum(size for (_, destination), size in self.sent_bytes.items() if destination == rank)

    @property
    def total_bytes(self) -> int:
        """Bytes sent by all."""
        return sum(self.sent_bytes.values())

    @property
    def total_messages(self) -> int:
        """Messages sent by all."""
        return sum(self.messages.values())


def same_shapes(parts: list[np.ndarray]) -> None:
    """Refuse ranks whose arrays differ in shape or dtype.

    Raises:
        ValueError: no rank at all, or two ranks differ.
    """
    if not parts:
        raise ValueError("need at least one rank")
    for rank, part in enumerate(parts):
        if part.shape != parts[0].shape or part.dtype != parts[0].dtype:
            raise ValueError(f"rank {rank} holds {part.dtype}{list(part.shape)}, rank 0 {parts[0].dtype}{list(parts[0].shape)}")
