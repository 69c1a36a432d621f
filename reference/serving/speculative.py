"""Speculative decoding in a batch: each decode verifies guesses and keeps those that hold (arXiv:2211.17192).

A step computes the last token and k guesses of a request; with j of them accepted it emits j + 1 tokens, and the keys and
values of the rest are dropped. If each guess holds with probability a, independently, a step emits

    (1 - a^(k+1)) / (1 - a)   tokens on average    (eq. 1 of Leviathan et al. 2023).

Where guesses come from (a draft model, Medusa heads, EAGLE, n-grams of the prompt) changes their cost and a, not this. Whether
a guess holds is a hash of (seed, request, position), so every executor sees the same. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache

_MASK = 2**64 - 1


def _mixed(value: int) -> int:
    """The output function of splitmix64 (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def holds(seed: int, request: int, position: int, acceptance: float) -> bool:
    """Whether the guess for this token of this request is what the target would have said.

    >>> sum(holds(0, 1, position, 0.7) for position in range(10000)) / 10000
    0.7001
    """
    drawn = _mixed(_mixed(_mixed(seed & _MASK) ^ (request & _MASK)) ^ (position & _MASK))
    return (drawn >> 11) * 2.0**-53 < acceptance


def expected_tokens(acceptance: float, drafts: int) -> float:
    """Tokens one step emits on average with this many guesses.

    >>> expected_tokens(0.5, 2), expected_tokens(1.0, 3)
    (1.75, 4.0)
    """
    return float(sum(acceptance**i for i in range(drafts + 1)))


class SpeculativeDecoding(ChunkedPrefill):
    """Chunked prefill whose decodes carry guesses, as far as the budget of tokens allows.

    No guess goes beyond the last token a request may emit. Every decode gets its token before any gets guesses.

    Args:
        blocks, max_num_seqs, max_num_batched_tokens, prefix_cache, max_chunk_tokens, watermark_blocks: as for `ChunkedPrefill`.
        num_drafts: guesses per decode and step.
        acceptance: probability that a guess holds, given that those before it did.
        seed: of the draws.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = SpeculativeDecoding(KVBlocks(8, 4), max_num_seqs=2, max_num_batched_tokens=16, num_drafts=3, acceptance=1.0)
    >>> scheduler.add(Request(0, prompt_tokens=5, output_tokens=5))
    >>> scheduler.complete(scheduler.schedule())
    []
    >>> batch = scheduler.schedule(); batch.draft_tokens, [request.id for request in scheduler.complete(batch)]
    (3, [0])
    """

    __slots__ = ("acceptance", "num_drafts", "seed")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        max_chunk_tokens: int | None = None,
        watermark_blocks: int = 0,
        num_drafts: int = 0,
        acceptance: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            max_chunk_tokens=max_chunk_tokens,
            watermark_blocks=watermark_blocks,
        )
        if num_drafts < 0 or not 0 <= acceptance <= 1:
            raise ValueError(f"{num_drafts=}, {acceptance=}: need at least 0, and a probability")
        self.num_drafts, self.acceptance, self.seed = num_drafts, acceptance, seed

    def schedule(self) -> Batch:
        """Return one step: a token and guesses of every decoding request, then pieces of prompts until the budget is used."""
        batch = Batch()
        begun: list[Request] = []
        left = sum(request.missing_tokens == 1 for request in self.running)
        for request in self.running:  # a preemption takes from the end, past this request or itself, so the walk stays valid
            if request.missing_tokens != 1:
                begun.append(request)
                continue
            left -= 1
            start = request.computed_tokens
            spare = self.max_num_batched_tokens - batch.tokens - left - 1
            drafts = max(0, min(self.num_drafts, request.output_tokens - request.generated_tokens - 1, spare))
            if not self._grow(request, start + 1 + drafts, batch):
                break
            batch.put(Slice(request, start, 1 + drafts, True, drafts))

        for request in begun:
            budget = min(self.max_num_batched_tokens - batch.tokens, self.max_chunk_tokens)
            tokens = min(request.missing_tokens, budget)
            if tokens > 0 and request.blocks and self._grow(request, request.computed_tokens + tokens, batch):
                batch.put(Slice(request, request.computed_tokens, tokens, tokens == request.missing_tokens))

        if self.waiting and not batch.preempted:
            self._admit_waiting(batch)
        return batch

    def accepted(self, part: Slice) -> int:
        """How many of a slice's guesses hold, as drawn; an executor that runs a model asks the model instead."""
        request, held = part.request, 0
        while held < part.drafts and holds(self.seed, request.id, request.generated_tokens + held, self.acceptance):
            held += 1
        return held

    def complete(self, batch: Batch) -> list[Request]:
        """Keep the guesses up to the first that fails, drop the cache of the rest; return the requests that finished."""
        for part in batch.slices:
            request = part.request
            if not part.drafts or not request.blocks:
                continue
            part.accepted = self.accepted(part)
            request.computed_tokens -= part.drafts - part.accepted  # what `Queue.complete` will add too much
            request.generated_tokens += part.accepted
        done = super().complete(batch)
        for part in batch.slices:
            request = part.request
            if part.accepted < part.drafts and request.blocks:
                kept = self.blocks.blocks_for(request.computed_tokens)
                self.blocks.free(request.blocks[kept:])
                del request.blocks[kept:]
        return done


def speculative(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    num_drafts: int,
    acceptance: float,
    seed: int,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    Raises:
        ValueError: a limit is out of range.
    """
    return _queue.play(
        SpeculativeDecoding,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_drafts=num_drafts,
        acceptance=acceptance,
        seed=seed,
    )


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw requests with up to four guesses per step, of any quality."""
    drawn = _queue.example(rng)
    for request in drawn["requests"]:
        request.pop("stop_after", None)  # a step may emit past it
    return drawn | {
        "num_drafts": int(rng.integers(0, 5)),
        "acceptance": float(rng.choice([0.0, 0.5, 0.8, 1.0])),
        "seed": int(rng.integers(2**31)),
    }


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats with four guesses, of which 70 % hold."""
    return _queue.chat_example(rng) | {"num_drafts": 4, "acceptance": 0.7, "seed": 0}


SPECULATIVE = Procedure(
    reference=speculative,
    examples=example,
    paper="arXiv:2211.17192; arXiv:2401.10774 (Medusa); arXiv:2401.15077 (EAGLE)",
    shapes={"200 chats, 4 guesses": chat_example},
)
