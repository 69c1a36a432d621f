"""How the engine chooses tokens. A request's draws depend on the seed, its id and its token's place alone, not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Sampler = Callable[[Tensor, Sequence[tuple[int, int]]], list[int]]
"""logits_RV and each row's (request id, tokens it emitted before) -> one token per row."""


def greedy(logits_RV: Tensor, steps: Sequence[tuple[int, int]]) -> list[int]:
    """The likeliest token of each row; the lowest id where several are."""
    return logits_RV.argmax(-1).tolist()
