"""Preemption by swapping: the cache of a preempted request moves to host memory and comes back (arXiv:2309.06180, section 4.5).

Where host memory is full the request recomputes instead. Swapped requests come before new ones: while one waits no prompt is
admitted, as in vLLM's first scheduler. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice
from llmlab.reference.serving.continuous_batching import ContinuousBatching


class Swapping(ContinuousBatching):
    """Continuous batching that swaps the latest arrival out; `Batch.swapped_blocks` counts the blocks copied, both ways.

    Args:
        blocks: the pool, with `num_host_blocks` to swap to.
        max_num_seqs, max_num_batched_tokens, prefix_cache, watermark_blocks: as for `ContinuousBatching`.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> from llmlab.reference.serving.kv_blocks import KVBlocks
    >>> scheduler = Swapping(KVBlocks(4, 1, num_host_blocks=4), max_num_seqs=2, max_num_batched_tokens=8)
    >>> for index in range(2):
    ...     scheduler.add(Request(index, prompt_tokens=2, output_tokens=3))
    >>> scheduler.complete(scheduler.schedule())
    []
    >>> batch = scheduler.schedule(); [part.request.id for part in batch.slices], batch.swapped_blocks
    ([0], 2)
    """

    __slots__ = ()

    def schedule(self) -> Batch:
        """Return prompts unless a swapped request waits; else one token of every running request and of those coming back."""
        batch = Batch()
        if self.waiting and not self.waiting[0].host_blocks:
            self._prefill(batch)
        if not batch.slices:
            self._decode(batch)
            if not batch.preempted:
                self._swap_in(batch)
        return batch

    def room(self, request: Request, cached: Sequence[int], tokens: int) -> bool:
        """Say whether a request fits; one that is swapped out is not for prefill."""
        return not request.host_blocks and super().room(request, cached, tokens)

    def preempt_last(self, batch: Batch) -> Request:
        """Swap the last running request out, or take its cache where host memory is full."""
        victim = self.running[-1]
        if len(victim.blocks) > self.blocks.free_host_blocks:
            return super().preempt_last(batch)
        self.running.pop()
        batch.drop(victim)
        batch.swapped_blocks += len(victim.blocks)
        victim.host_blocks = self.blocks.swap_out(victim.blocks)
        victim.blocks = []
        victim.preemptions += 1
        batch.preempted.append(victim)
        self.waiting.appendleft(victim)
        return victim

    def _swap_in(self, batch: Batch) -> None:
        while self.waiting and self.waiting[0].host_blocks and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            more = self.blocks.blocks_for(request.computed_tokens + 1) - len(request.host_blocks)
            if len(request.host_blocks) + more + self.watermark_blocks > self.blocks.free_blocks:
                return
            batch.swapped_blocks += len(request.host_blocks)
            request.blocks = self.blocks.swap_in(request.host_blocks) + self.blocks.allocate(more)
            request.host_blocks = []
            request.remembered_blocks = 0  # they are other blocks now; a cache may learn them anew
            self.waiting.popleft()
            self.running.append(request)
            batch.put(Slice(request, request.computed_tokens, 1, True))

    def finish(self, request: Request) -> None:
        """End a request now and release what it holds, in host memory too."""
        super().finish(request)
        self.blocks.free_host(request.host_blocks)
        request.host_blocks = []


def swapping(
    *,
    num_blocks: int,
    num_host_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    Raises:
        ValueError: a limit is out of range.
    """
    return _queue.play(
        Swapping,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        num_host_blocks=num_host_blocks,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw requests for a small pool and host memory for some of it."""
    return _queue.example(rng) | {"num_host_blocks": int(rng.integers(0, 12)), "prefix_caching": False}


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats on a third of the memory they want, the rest in host memory."""
    return _queue.chat_example(rng) | {"num_blocks": 700, "num_host_blocks": 2048, "prefix_caching": False}


SWAPPING = Procedure(
    reference=swapping,
    examples=example,
    paper="arXiv:2309.06180",
    shapes={"200 chats on 700 blocks": chat_example},
)
