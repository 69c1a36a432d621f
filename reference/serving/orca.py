"""Orca: iteration-level scheduling with selective batching (Yu et al., OSDI 2022, sections 3 and 4).

Each iteration runs one step of every request of the pool: the whole prompt of one that is new, one token of the others;
only attention treats them apart. On admission the slots for prompt and longest output are taken at once, so nothing is ever
preempted. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice


class Orca(_queue.Queue):
    """First come, first served; whole prompts beside decodes; memory for the longest output reserved.

    Args:
        blocks: the pool of KV blocks (Orca counts slots of one token: block_tokens = 1).
        max_num_seqs: requests of one iteration.
        max_num_batched_tokens: tokens of one iteration; no prompt may be longer.
        prefix_cache: over the same pool, or None.
        watermark_blocks: blocks an admission leaves free.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> from llmlab.reference.serving.kv_blocks import KVBlocks
    >>> blocks = KVBlocks(8, 1); scheduler = Orca(blocks, max_num_seqs=2, max_num_batched_tokens=16)
    >>> scheduler.add(Request(0, prompt_tokens=3, output_tokens=4))
    >>> scheduler.schedule().prefill, blocks.free_blocks  # 3 + 4 - 1 slots are taken at once
    ([(3, 0)], 2)
    """

    __slots__ = ()

    def add(self, request: Request) -> None:
        """Queue a request; ValueError where its prompt passes an iteration, or its tokens the blocks."""
        if request.prompt_tokens > self.max_num_batched_tokens:
            raise ValueError(
                f"request {request.id}: its prompt of {request.prompt_tokens} tokens passes "
                f"max_num_batched_tokens={self.max_num_batched_tokens}"
            )
        super().add(request)

    def schedule(self) -> Batch:
        """Return one iteration: a token of every running request, and whole prompts of new ones."""
        batch = Batch()
        for request in self.running:
            batch.put(Slice(request, request.computed_tokens, 1, True))
        budget = self.max_num_batched_tokens - batch.tokens
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            cached = self.cached_blocks(request)
            start = len(cached) * self.blocks.block_tokens
            tokens = request.prompt_tokens - start
            most = request.prompt_tokens + request.output_tokens - 1
            if tokens > budget or not self.room(request, cached, most):
                break
            self.admit(request, cached, most)
            budget -= tokens
            batch.put(Slice(request, start, tokens, True))
        return batch


def orca(
    *,
    num_blocks: int,
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
        Orca,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


ORCA = Procedure(
    reference=orca,
    examples=_queue.example,
    paper="Yu et al. 2022, Orca, OSDI",
    shapes={"200 chats, 64 at once": _queue.chat_example},
)
