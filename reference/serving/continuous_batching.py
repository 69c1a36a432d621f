"""Continuous batching: every iteration chooses its batch anew (Orca, Yu et al., OSDI 2022; vLLM, arXiv:2309.06180).

A step is either whole prompts or one token of every running request; prompts go first. First come, first served: a request
that does not fit keeps those behind it waiting. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


class ContinuousBatching(_queue.Queue):
    """Prefills whole prompts before decoding; preempts the latest arrival by recompute.

    Args:
        blocks: the pool of KV blocks.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens of one step; no request may be longer, since a preempted one is recomputed whole.
        prefix_cache: over the same pool, or None.
        watermark_blocks: blocks an admission leaves free, so that it is not preempted at once; 1 % of the pool where None.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = ContinuousBatching(KVBlocks(8, 4), max_num_seqs=2, max_num_batched_tokens=16)
    >>> scheduler.add(Request(0, prompt_tokens=5, output_tokens=2))
    >>> batch = scheduler.schedule(); batch.prefill, scheduler.complete(batch)
    ([(5, 0)], [])
    >>> batch = scheduler.schedule(); batch.decode_context_tokens, [request.id for request in scheduler.complete(batch)]
    (6, [0])
    """

    __slots__ = ()

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        watermark_blocks: int | None = None,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            watermark_blocks=blocks.num_blocks // 100 if watermark_blocks is None else watermark_blocks,
        )

    def add(self, request: Request) -> None:
        """Queue a request; ValueError where it could never fit the blocks, or a step when recomputed whole."""
        most = request.prompt_tokens + request.output_tokens - 1
        if most > self.max_num_batched_tokens:
            raise ValueError(
                f"request {request.id}: its {most} tokens pass max_num_batched_tokens={self.max_num_batched_tokens}, "
                "and a preempted request is recomputed in one step"
            )
        super().add(request)

    def schedule(self) -> Batch:
        """Return the prompts that fit now or, where none does, one token of every running request."""
        batch = Batch()
        if self.waiting:
            self._prefill(batch)
        if not batch.slices:
            self._decode(batch)
        return batch

    def _prefill(self, batch: Batch) -> None:
        budget = self.max_num_batched_tokens
        while self.waiting and len(self.running) < self.max_num_seqs:
            self.bring_forward()
            request = self.waiting[0]
            cached = self.cached_blocks(request)
            known = request.known_tokens
            tokens = known - len(cached) * self.blocks.block_tokens
            if tokens > budget or not self.room(request, cached, known):
                return
            self.admit(request, cached, known)
            budget -= tokens
            batch.put(Slice(request, request.computed_tokens, tokens, True))

    def _decode(self, batch: Batch) -> None:
        running, slices, block_tokens = self.running, batch.slices, self.blocks.block_tokens
        context = 0
        for request in running:  # a preemption takes from the end, past this request or itself, so the walk stays valid
            start = request.computed_tokens
            if start % block_tokens == 0 and not self._grow(request, batch):
                break
            context += start + 1
            slices.append(Slice(request, start, 1, True))
        batch.decode_requests = batch.emitted = len(slices)
        batch.decode_context_tokens = context

    def _grow(self, request: Request, batch: Batch) -> bool:
        """Give a request its next block; return False where it was itself the one to be preempted."""
        while self.blocks.free_blocks == 0:
            if self.preempt_last(batch) is request:
                return False
        request.blocks += self.blocks.allocate()
        return True


def continuous_batching(
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
        ContinuousBatching,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


CONTINUOUS_BATCHING = Procedure(
    reference=continuous_batching,
    examples=_queue.example,
    paper="Yu et al. 2022, Orca, OSDI; arXiv:2309.06180",
    shapes={"200 chats, 64 at once": _queue.chat_example},
)
