"""Lookahead decoding: n-grams from Jacobi trajectories, verified beside the next lookahead (Fu et al. 2024, arXiv:2402.02057,
algorithm 2; Jacobi decoding is Santilli et al. 2023, arXiv:2305.10427).

No draft model: the model guesses many future tokens at once from wrong pasts. Tokens at one place that follow each other over
several iterations often are fluent n-grams, though not where they were made. W columns of lookahead, N tokens an n-gram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmlab.reference.decoding._loop import Step, Stop
from llmlab.reference.decoding._tree import ROOT, Draft, Scored, TokenTree, Verified, matching, same_text, verified
from llmlab.reference.decoding.greedy import GREEDY
from llmlab.reference.op import Procedure


@dataclass
class Lookahead:
    """The window of trajectories and the pool of n-grams.

    Row i of the window is the guess of i iterations ago, newest last; column j stands for the place j tokens on. One call
    of the model gets, below the text's last token,

        the oldest row as a chain, and below its column j that column's newer guesses, as a chain:  the lookahead branch
        up to G n-grams of the pool that begin with the text's last token, each as a chain:         the verification branch

    The model's answer to a column's newest guess is the next iteration's, and completes an n-gram.

    Attributes:
        window: W columns, at least 1.
        ngram: N tokens, at least 2.
        guesses: G n-grams verified at once; also how many, the latest, the pool keeps per first token.
    """

    window: int
    ngram: int
    guesses: int
    _rows: list[list[int]] = field(default_factory=list, init=False)
    _pool: dict[int, list[tuple[int, ...]]] = field(default_factory=dict, init=False)
    _newest: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.window < 1 or self.ngram < 2 or self.guesses < 0:
            raise ValueError(f"window={self.window}, ngram={self.ngram}, guesses={self.guesses}: need at least 1, 2 and 0")

    def draft(self, text: Sequence[int]) -> Draft:
        """Both branches below the text's last token."""
        if not self._rows:  # any guess will do to begin with
            self._rows = [[text[(i + j) % len(text)] for j in range(self.window)] for i in range(self.ngram - 1)]
        tokens, parents = [text[-1]], [ROOT]

        def hang(below: int, chain: Sequence[int]) -> int:
            for token in chain:
                tokens.append(token)
                parents.append(below)
                below = len(tokens) - 1
            return below

        for gram in reversed(self._pool.get(text[-1], [])):
            hang(0, gram)
        end = hang(0, self._rows[0])
        self._newest = [hang(end - self.window + 1 + j, [row[j] for row in self._rows[1:]]) for j in range(self.window)]
        return Draft(tuple(tokens), tuple(parents))

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """Complete n-grams with the answers to the newest guesses, and move the window one place on."""
        if not self._newest:
            return
        newer = [int(np.argmax(scored.logits[node])) for node in self._newest]
        for j, answer in enumerate(newer):
            first, *rest = [row[j] for row in self._rows]
            grams = self._pool.setdefault(first, [])
            gram = (*rest, answer)
            if gram in grams:
                grams.remove(gram)
            grams.append(gram)
            del grams[: max(0, len(grams) - self.guesses)]
        self._rows = [*self._rows[1:], newer]


def lookahead(
    step: Step | TokenTree,
    prompt: Sequence[int],
    *,
    window: int,
    ngram: int,
    guesses: int,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
) -> Verified:
    """Return greedy decoding's text, and how many tokens of it each call gave.

    Of equal logits the lowest id counts. A call scores 1 + W (N - 1) + G (N - 1) tokens at most.

    Raises:
        ValueError: an empty prompt, negative max_tokens, or a window, n-gram or number of guesses too small.

    >>> ever_on = lambda new, state: (np.eye(3)[(new[-1] + 1) % 3], None)
    >>> lookahead(ever_on, [0], window=3, ngram=3, guesses=2, max_tokens=9).emitted
    (1, 1, 1, 3, 3)
    """
    drafter = Lookahead(window, ngram, guesses)
    return verified(step, prompt, drafter, matching, Stop(max_tokens, frozenset(stop_ids)))


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"window": int(rng.integers(1, 5)), "ngram": int(rng.integers(2, 5)), "guesses": int(rng.integers(0, 4))}
    return dict(GREEDY.examples(rng)) | sizes


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    return dict(GREEDY.shapes["two tiny layers, 64 tokens"](rng)) | {"window": 5, "ngram": 4, "guesses": 5}


LOOKAHEAD = Procedure(
    reference=lookahead,
    examples=_examples,
    paper="arXiv:2402.02057",
    same=same_text,
    shapes={"two tiny layers, 64 tokens, window 5": _timed},
)
