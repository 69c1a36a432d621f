"""The loop every one-token-at-a-time decoding shares: step, choose, append, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Step = Callable[[Sequence[int], Any], tuple[np.ndarray, Any]]
"""(new token ids, state) -> (logits_V of the last one, state). The first call gets the prompt and None as the state."""


@dataclass(frozen=True)
class Stop:
    """When a text ends; whichever comes first. What ended it is part of what was generated.

    Attributes:
        max_tokens: tokens to generate at most; 0 generates nothing.
        ids: tokens that end it.
        sequences: token sequences that end it when it ends in one.
        texts: strings that end it once the text of the generated tokens contains one; needs `decode`.
        decode: text of token ids, for `texts`.
    """

    max_tokens: int
    ids: frozenset[int] = frozenset()
    sequences: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens={self.max_tokens}: must be at least 0")
        if self.texts and self.decode is None:
            raise ValueError(f"texts={self.texts!r}: needs `decode`, which turns tokens into text")
        if not all(self.sequences) or not all(self.texts):
            raise ValueError("an empty sequence or text would stop before the first token")

    def reason(self, generated: Sequence[int]) -> str:
        """Why to stop after these tokens, or the empty string: "id", "sequence", "text" or "length", in that order."""
        if generated and generated[-1] in self.ids:
            return "id"
        if any(tuple(generated[-len(sequence) :]) == sequence for sequence in self.sequences):
            return "sequence"
        if self.texts and self.decode is not None:
            text = self.decode(generated)
            if any(stop in text for stop in self.texts):
                return "text"
        return "length" if len(generated) >= self.max_tokens else ""


@dataclass(frozen=True)
class Generated:
    """The tokens that came out, and why no more did."""

    ids: tuple[int, ...]
    reason: str


def generate(step: Step, prompt: Sequence[int], choose: Callable[[np.ndarray], int], stop: Stop) -> Generated:
    """Continue a prompt: each step sees only the tokens the state does not hold yet.

    Raises:
        ValueError: an empty prompt, of which nothing could be predicted.
    """
    if not len(prompt):
        raise ValueError("prompt=[]: needs at least one token")
    generated: list[int] = []
    state, new = None, list(prompt)
    while not (reason := stop.reason(generated)):
        logits_V, state = step(new, state)
        new = [int(choose(logits_V))]
        generated += new
    return Generated(tuple(generated), reason)


def without_cache(logits: Callable[[np.ndarray], np.ndarray]) -> Step:
    """A step over a function ids_BT -> logits_BTV that sees the whole text again each time; the state is the text."""

    def step(new: Sequence[int], state: list[int] | None) -> tuple[np.ndarray, list[int]]:
        text = [*(state or []), *new]
        return logits(np.array([text]))[0, -1], text

    return step
