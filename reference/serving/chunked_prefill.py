"""Chunked prefill: prompts are computed in pieces beside the decodes, so no decode waits for a prompt (arXiv:2403.02310).

Each step has a budget of tokens. Decodes take theirs first, then prompts already begun, then waiting requests (the order of
Sarathi-Serve, Agrawal et al. 2024, section 4, and of vLLM's second scheduler). Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


class ChunkedPrefill(_queue.Queue):
    """Mixes decodes and pieces of prompts within a token budget; preempts the last running request by recompute.

    Args:
        blocks: the pool of KV blocks.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens of one step, at least max_num_seqs so that decodes always fit.
        prefix_cache: over the same pool, or None.
        max_chunk_tokens: longest piece of one prompt; None leaves the budget as the only limit.
        watermark_blocks: blocks an admission leaves free.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = ChunkedPrefill(KVBlocks(8, 4), max_num_seqs=2, max_num_batched_tokens=4)
    >>> scheduler.add(Request(0, prompt_tokens=5, output_tokens=1))
    >>> batch = scheduler.schedule(); batch.prefill, batch.emitted, scheduler.complete(batch)
    ([(4, 0)], 0, [])
    >>> batch = scheduler.schedule(); batch.decode_context_tokens, [request.id for request in scheduler.complete(batch)]
    (5, [0])
    """

    __slots__ = ("max_chunk_tokens",)

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        max_chunk_tokens: int | None = None,
        watermark_blocks: int = 0,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            watermark_blocks=watermark_blocks,
        )
        if max_chunk_tokens is not None and max_chunk_tokens < 1:
            raise ValueError(f"{max_chunk_tokens=}: need at least 1")
        self.max_chunk_tokens = max_num_batched_tokens if max_chunk_tokens is None else max_chunk_tokens

    def schedule(self) -> Batch:
        """Return one step: a token of every decoding request, then pieces of prompts until the budget is used."""
        batch = Batch()
        slices, block_tokens = batch.slices, self.blocks.block_tokens
        begun: list[Request] = []
        context = 0
        for request in self.running:  # a preemption takes from the end, past this request or itself, so the walk stays valid
            start = request.computed_tokens
            if request.prompt_tokens + request.generated_tokens - start != 1:
                begun.append(request)
                continue
            if start % block_tokens == 0 and not self._grow(request, start + 1, batch):
                break
            context += start + 1
            slices.append(Slice(request, start, 1, True))
        batch.decode_requests = batch.emitted = len(slices)
        batch.decode_context_tokens = context

        for request in begun:
            budget = min(self.max_num_batched_tokens - batch.tokens, self.max_chunk_tokens)
            tokens = min(request.missing_tokens, budget)
            # one that was preempted meanwhile holds no blocks
            if tokens > 0 and request.blocks and self._grow(request, request.computed_tokens + tokens, batch):
                batch.put(Slice(request, request.computed_tokens, tokens, tokens == request.missing_tokens))

        if self.waiting and not batch.preempted:
            self._admit_waiting(batch)
        return batch

    def _admit_waiting(self, batch: Batch) -> None:
        budget = self.max_num_batched_tokens - batch.tokens
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            self.bring_forward()
            request = self.waiting[0]
            cached = self.cached_blocks(request)
            start = len(cached) * self.blocks.block_tokens
            tokens = min(request.known_tokens - start, budget, self.max_chunk_tokens)
            if not self.room(request, cached, start + tokens):
                return
            self.admit(request, cached, start + tokens)
            budget -= tokens
            batch.put(Slice(request, start, tokens, tokens == request.missing_tokens))

    def _grow(self, request: Request, tokens: int, batch: Batch) -> bool:
        """Give a request blocks for `tokens` tokens; return False where it was itself the one to be preempted."""
        more = self.blocks.blocks_for(tokens) - len(request.blocks)
        while more > self.blocks.free_blocks:
            if self.preempt_last(batch) is request:
                return False
        if more > 0:
            request.blocks += self.blocks.allocate(more)
        return True


def chunked_prefill(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    requests: Sequence[Mapping[str, Any]],
    max_chunk_tokens: int | None = None,
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    Raises:
        ValueError: a limit is out of range.
    """
    return _queue.play(
        ChunkedPrefill,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_chunk_tokens=max_chunk_tokens,
    )


CHUNKED_PREFILL = Procedure(
    reference=chunked_prefill,
    examples=_queue.example,
    paper="arXiv:2403.02310",
    shapes={"200 chats, 64 at once": _queue.chat_example},
)
