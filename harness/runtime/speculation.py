"""The real engine speculates: guesses of all decoding requests are verified in one step over the paged cache.

The scheduler is the simulator's (`reference/serving/speculative.py`); there a draw says whether a guess
holds, here the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from llmlab.harness.runtime.engine import Engine
from llmlab.kernels.decoding._tree_torch import TorchTree
from llmlab.kernels.models.llama_torch import LlamaTorch
from llmlab.reference.decoding._tree import Verify, chain, matching
from llmlab.reference.decoding.speculative import DraftModel
from llmlab.reference.serving._request import Batch, Slice
from llmlab.reference.serving.speculative import SpeculativeDecoding

Guess = Callable[[int, Sequence[int], int], Sequence[int]]
"""(request id, its prompt and output so far, how many) -> at most so many guesses of what comes next."""


class VerifiedSpeculation(SpeculativeDecoding):
    """The scheduler, told by its executor how many guesses of each request held."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.held: dict[int, int] = {}

    def accepted(self, part: Slice) -> int:
        """As many as the model accepted."""
        return self.held.pop(part.request.id)


class SpeculatingEngine(Engine):
    """Serves jobs with guesses.

    Args:
        model: weights and forward pass; scores any rows of a packed batch.
        scheduler: fresh; says how many guesses each step verifies.
        guess: where guesses come from; missing ones are filled up with the last token, which seldom holds.
        verify: which of them hold, and the token after them; greedy unless said.
        others: of `Engine`.
    """

    def __init__(
        self, model: LlamaTorch, scheduler: VerifiedSpeculation, guess: Guess, *, verify: Verify = matching, **others: Any
    ) -> None:
        super().__init__(_AllRows(model), scheduler, **others)
        self.device = model.device
        self.held, self.guess, self.verify = scheduler.held, guess, verify
        self._guesses: dict[int, list[int]] = {}

    def _pack(self, batch: Batch) -> tuple[Any, ...]:
        self._guesses = {}
        for part in batch.slices:
            if part.drafts:
                text = self.progress[part.request.id].tokens
                made = list(self.guess(part.request.id, text, part.drafts))[: part.drafts]
                self._guesses[part.request.id] = made + [text[-1]] * (part.drafts - len(made))
        starts = list(accumulate((part.tokens for part in batch.slices), initial=0))
        self.rows = [  # of a slice with guesses each place from the last known token on, else the last
            list(range(end - 1 - part.drafts, end)) for part, end in zip(batch.slices, starts[1:])
        ]
        return (*super()._pack(batch), [row for rows in self.rows for row in rows])

    def _tokens(self, part: Slice) -> list[int]:
        known = self.progress[part.request.id].tokens[part.start : part.start + part.tokens]
        return known + self._guesses.get(part.request.id, [])

    def _choose(self, batch: Batch, logits_RV: Tensor) -> list[list[int]]:
        chosen, first = [], 0
        for part, rows in zip(batch.slices, self.rows):
            logits_NV = logits_RV[first : first + len(rows)]
            first += len(rows)
            if not part.emits:
                continue
            request = part.request
            draft = chain([self.progress[request.id].tokens[-1], *self._guesses.get(request.id, [])])
            wide_NV = logits_NV if logits_NV.dtype.itemsize == 8 else logits_NV.float()
            path, token = self.verify(draft, wide_NV.cpu().numpy())
            if part.drafts:
                self.held[request.id] = len(path) - 1
            chosen.append([*(draft.tokens[node] for node in path[1:]), token])
        return chosen


class _AllRows:
    """A model under the engine's protocol whose last argument says which rows to score."""

    def __init__(self, model: LlamaTorch) -> None:
        self.new_cache, self.forward, self.device = model.new_cache, model.forward, model.device


def prompt_lookup(ngram: int = 2) -> Guess:
    """What followed the last time the text's last `ngram` tokens stood there (Saxena 2023, "Prompt Lookup Decoding")."""

    def guess(request: int, text: Sequence[int], count: int) -> Sequence[int]:
        stem = list(text[-ngram:])
        for start in range(len(text) - ngram - 1, -1, -1):
            if list(text[start : start + ngram]) == stem:
                return text[start + ngram : start + ngram + count]
        return []

    return guess


class DraftModels:
    """Guesses of a small model, which keeps a cache of its own for each request."""

    def __init__(self, model: LlamaTorch) -> None:
        self.model = model
        self._drafters: dict[int, DraftModel] = {}

    def __call__(self, request: int, text: Sequence[int], count: int) -> Sequence[int]:
        """Catch up with the request's text, then guess greedily."""
        drafter = self._drafters.setdefault(request, DraftModel(TorchTree(self.model), count))
        drafter.guesses = count
        return drafter.draft(text).tokens[1:]
