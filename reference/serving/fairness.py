"""Who is served next: by priority, shortest predicted output first, or fairly by virtual token counters (arXiv:2401.00588).

Sheng et al. 2024 count per client the service it got, w_p per prompt token and w_q per generated token, and always admit a
request of the waiting client with the least. Between two clients that both wait all the time, the service then differs by at
most 2 max(w_p longest prompt, w_q tokens that fit in memory) (their theorem 4.4). Otherwise as chunked prefill. Units: tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


class Ordered(ChunkedPrefill):
    """Chunked prefill in the order of a key, the smallest first; the running request with the largest is preempted first."""

    __slots__ = ()

    def key(self, request: Request) -> tuple[int, int]:
        """Order of a request."""
        raise ValueError(f"{type(self).__name__} states no order")

    def bring_forward(self) -> None:
        """Put the smallest key at the head of `waiting`."""
        place = min(range(len(self.waiting)), key=lambda i: self.key(self.waiting[i]))
        if place:
            chosen = self.waiting[place]
            del self.waiting[place]
            self.waiting.appendleft(chosen)

    def schedule(self) -> Batch:
        """Return one step, and leave `running` in order so that the next one serves and preempts by it."""
        batch = super().schedule()
        self.running.sort(key=self.key)
        return batch


class PriorityScheduling(Ordered):
    """The lowest `priority` first, then the earliest arrival.

    >>> scheduler = PriorityScheduling(KVBlocks(8, 4), max_num_seqs=1, max_num_batched_tokens=8)
    >>> for index in range(3):
    ...     scheduler.add(Request(index, prompt_tokens=4, output_tokens=1, priority=-index))
    >>> [part.request.id for part in scheduler.schedule().slices]
    [2]
    """

    __slots__ = ()

    def key(self, request: Request) -> tuple[int, int]:
        """Priority, then arrival."""
        return request.priority, request.id


class ShortestJobFirst(Ordered):
    """The request with the fewest tokens expected to generate first (S3, arXiv:2306.06000), then the earliest arrival."""

    __slots__ = ()

    def key(self, request: Request) -> tuple[int, int]:
        """Expected output, then arrival."""
        return request.expected_tokens, request.id


class VirtualTokenCounter(ChunkedPrefill):
    """Admits from the waiting client that was served least (algorithm 2 of arXiv:2401.00588).

    A client that comes back is lifted to the least of the waiting ones (or, where nobody waits, to that of the client that
    left the queue last), so that idling earns nothing.

    Args:
        blocks, max_num_seqs, max_num_batched_tokens, prefix_cache, max_chunk_tokens, watermark_blocks: as for `ChunkedPrefill`.
        prompt_weight, output_weight: service of one prompt token and of one generated token.

    Attributes:
        counters: service counted per client.

    >>> scheduler = VirtualTokenCounter(KVBlocks(8, 4), max_num_seqs=2, max_num_batched_tokens=16)
    >>> for index, client in enumerate((7, 7, 8)):
    ...     scheduler.add(Request(index, prompt_tokens=4, output_tokens=2, client=client))
    >>> [part.request.client for part in scheduler.schedule().slices], scheduler.counters
    ([7, 8], {7: 4, 8: 4})
    """

    __slots__ = ("_charged", "_last_left", "counters", "output_weight", "prompt_weight")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        max_chunk_tokens: int | None = None,
        watermark_blocks: int = 0,
        prompt_weight: int = 1,
        output_weight: int = 2,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            max_chunk_tokens=max_chunk_tokens,
            watermark_blocks=watermark_blocks,
        )
        if prompt_weight < 0 or output_weight < 0:
            raise ValueError(f"{prompt_weight=}, {output_weight=}: must not be negative")
        self.prompt_weight, self.output_weight = prompt_weight, output_weight
        self.counters: dict[int, int] = {}
        self._charged: set[int] = set()  # requests whose prompt is counted; one preempted is not counted again
        self._last_left: int | None = None

    def add(self, request: Request) -> None:
        """Queue a request; a client that had none waiting is lifted first."""
        super().add(request)
        client = request.client
        others = [self.counters[one.client] for one in self.waiting if one is not request and one.client != client]
        if all(one is request or one.client != client for one in self.waiting):
            floor = min(others) if others else self.counters.get(client if self._last_left is None else self._last_left, 0)
            self.counters[client] = max(self.counters.get(client, 0), floor)

    def bring_forward(self) -> None:
        """Put the earliest request of the client served least at the head; clients with equal service by number."""
        place = min(range(len(self.waiting)), key=lambda i: self._key(self.waiting[i]))
        if place:
            chosen = self.waiting[place]
            del self.waiting[place]
            self.waiting.appendleft(chosen)

    def _key(self, request: Request) -> tuple[int, int, int]:
        return self.counters[request.client], request.client, request.id

    def admit(self, request: Request, cached: Sequence[int], tokens: int) -> None:
        """Start a request and count its prompt, the first time."""
        super().admit(request, cached, tokens)
        if request.id not in self._charged:
            self._charged.add(request.id)
            self.counters[request.client] += self.prompt_weight * request.prompt_tokens
        if all(one.client != request.client for one in self.waiting):
            self._last_left = request.client

    def complete(self, batch: Batch) -> list[Request]:
        """Count the tokens that came out."""
        for part in batch.slices:
            if part.emits and part.request.blocks:
                self.counters[part.request.client] += self.output_weight
        done = super().complete(batch)
        self._charged.difference_update(request.id for request in done)
        return done

    def finish(self, request: Request) -> None:
        """End a request now and release what it holds."""
        super().finish(request)
        self._charged.discard(request.id)


POLICIES = {"priority": PriorityScheduling, "shortest_job": ShortestJobFirst, "virtual_token_counter": VirtualTokenCounter}


def fairness(
    *,
    policy: str,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    A request may have a "priority", a "client" and "predicted_tokens". Requests must be given in order of arrival.

    Raises:
        ValueError: a limit is out of range, or an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"{policy=} is none of {', '.join(POLICIES)}")
    return _queue.play(
        POLICIES[policy],
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a policy and requests of three clients."""
    drawn = _queue.example(rng) | {"policy": str(rng.choice(list(POLICIES)))}
    drawn["requests"].sort(key=lambda request: request["step"])
    for request in drawn["requests"]:
        request["priority"] = int(rng.integers(-1, 2))
        request["client"] = int(rng.integers(3))
        if rng.random() < 0.5:
            request["predicted_tokens"] = int(rng.integers(1, 9))
    return drawn


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats of 8 clients, served fairly."""
    drawn = _queue.chat_example(rng) | {"policy": "virtual_token_counter"}
    drawn["requests"].sort(key=lambda request: request["step"])
    for request in drawn["requests"]:
        request["client"] = int(rng.integers(8))
    return drawn


FAIRNESS = Procedure(
    reference=fairness,
    examples=example,
    paper="arXiv:2401.00588; arXiv:2306.06000",
    shapes={"200 chats of 8 clients": chat_example},
)
