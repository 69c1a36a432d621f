"""What schedulers pass around: a request's state, the slice of it one step computes, and the batch of slices.

A decision has no clock: nothing here knows the time. The simulator and the real engine drive the same objects and differ
only in how long a batch takes. Units: tokens and blocks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

NO_ADAPTER = -1
"""Adapter of a request that uses the base model alone."""


@dataclass(slots=True, eq=False)
class Request:
    """One generation request and how far it has come.

    Attributes:
        id: unique, and the order of arrival; ties are broken by it.
        prompt_tokens: length of the prompt, at least 1.
        output_tokens: tokens to generate at most, at least 1 (an executor may finish earlier, at a stop token).
        block_hashes: identity of each FULL block of the prompt, chained: equal hashes mean equal prefixes.
            Empty: shares nothing. It may run on over the output where the executor knows it; a block is only
            reused once it was computed.
        computed_tokens: tokens whose keys and values are in the cache now.
        generated_tokens: tokens emitted so far.
        cached_tokens: prompt tokens found in the prefix cache when last admitted.
        preemptions: how often its cache was taken away.
        blocks: ids of its KV blocks, in token order.
        remembered_blocks: leading blocks that were given to the prefix cache or came from it.
        priority: the lower, the more urgent.
        client: who sent it.
        adapter: id of its low-rank adapter, or `NO_ADAPTER`.
        predicted_tokens: guess of `output_tokens` a policy may use; 0 where it is known.
        host_blocks: ids of its blocks in host memory while it is swapped out.
    """

    id: int
    prompt_tokens: int
    output_tokens: int
    block_hashes: tuple[int, ...] = ()
    priority: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    remembered_blocks: int = 0
    client: int = 0
    adapter: int = NO_ADAPTER
    predicted_tokens: int = 0
    host_blocks: list[int] = field(default_factory=list)

    @property
    def expected_tokens(self) -> int:
        """Tokens a policy expects it to generate: the prediction, or all it may."""
        return self.predicted_tokens or self.output_tokens

    @property
    def known_tokens(self) -> int:
        """Tokens whose ids exist: the prompt and what was generated."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def missing_tokens(self) -> int:
        """Known tokens not yet in the cache; a decode step has exactly one."""
        return self.known_tokens - self.computed_tokens


@dataclass(slots=True)
class Slice:
    """`tokens` tokens of one request, from position `start`, computed in one step; `emits` says a new token comes out.

    The last `drafts` of the tokens are guesses to be verified; `accepted` says how many held, once the step is complete, and
    each of those is one more token that came out.
    """

    request: Request
    start: int
    tokens: int
    emits: bool
    drafts: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Batch:
    """One step: the slices to compute, and the requests that lost their cache to make room for them.

    The scheduler sums up the shape while it chooses, so that an executor need not walk the slices again.

    Attributes:
        slices: what to compute, one per request.
        preempted: requests that lost their cache; they wait again.
        prefill: (new tokens, tokens already in its cache) of each slice longer than one token.
        decode_requests: slices of one token.
        decode_context_tokens: tokens those attend to, summed, the new token included.
        emitted: slices that emit a token, and with guesses the rows whose next token is asked for.
        draft_tokens: guesses verified, summed over the decoding requests.
        swapped_blocks: blocks copied between device and host memory before the step, in both directions.
    """

    slices: list[Slice] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    prefill: list[tuple[int, int]] = field(default_factory=list)
    decode_requests: int = 0
    decode_context_tokens: int = 0
    emitted: int = 0
    draft_tokens: int = 0
    swapped_blocks: int = 0

    @property
    def tokens(self) -> int:
        """Tokens computed in this step."""
        return self.decode_requests + self.draft_tokens + sum(new for new, _ in self.prefill)

    def put(self, part: Slice) -> None:
        """Append a slice and add it to the sums."""
        self.slices.append(part)
        if part.tokens == 1 + part.drafts:
            self.decode_requests += 1
            self.decode_context_tokens += part.start + part.tokens
            self.draft_tokens += part.drafts
        else:
            self.prefill.append((part.tokens, part.start))
        self.emitted += part.emits + part.drafts

    def drop(self, request: Request) -> int:
        """Take a request's slice out again; return its tokens, 0 where it has none."""
        for place, part in enumerate(self.slices):
            if part.request is request:
                del self.slices[place]
                if part.tokens == 1 + part.drafts:
                    self.decode_requests -= 1
                    self.decode_context_tokens -= part.start + part.tokens
                    self.draft_tokens -= part.drafts
                else:
                    self.prefill.remove((part.tokens, part.start))
                self.emitted -= part.emits + part.drafts
                return part.tokens
        return 0


class Scheduler(Protocol):
    """A batching policy: a state machine two executors drive.

    The loop is `add` as requests arrive; `schedule` -> batch (empty when nothing can run); run it; `complete(batch)` ->
    the requests that are done, their blocks released. `finish` ends one early (stop token, cancelled).
    """

    waiting: deque[Request]
    running: list[Request]

    def add(self, request: Request) -> None:
        """Queue a request; ValueError if it can never fit."""

    def schedule(self) -> Batch:
        """Choose the next step."""

    def complete(self, batch: Batch) -> list[Request]:
        """Record that the batch was computed; return the requests that finished."""

    def finish(self, request: Request) -> None:
        """End a request now and release what it holds."""
