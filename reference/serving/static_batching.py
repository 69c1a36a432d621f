"""Static batching: a batch of requests runs together until the longest output ends, padded to the longest prompt.

This is batching at the level of requests, as in FasterTransformer (NVIDIA 2021) and as Orca describes it to improve on (Yu et
al., OSDI 2022, section 3.1). No request joins or leaves a batch that runs, and memory for the longest prompt and the longest
output is set aside for every row. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


class StaticBatching(_queue.Queue):
    """Takes the oldest requests when nothing runs; the sums of its batches count every padded row.

    A request whose output is complete keeps its row and its memory, and is handed out with the rest of its batch.

    Args:
        blocks: the pool of KV blocks.
        max_num_seqs: rows of a batch.
        max_num_batched_tokens: tokens of the padded prompts of one batch.
        prefix_cache: not used: a padded batch starts at position 0. Must be None.
        watermark_blocks: blocks a batch leaves free.

    Raises:
        ValueError: a limit is out of range, or a prefix cache is given; from `add`, a request that can never fit.

    >>> scheduler = StaticBatching(KVBlocks(8, 4), max_num_seqs=2, max_num_batched_tokens=16)
    >>> for index, prompt in enumerate((5, 3)):
    ...     scheduler.add(Request(index, prompt_tokens=prompt, output_tokens=2 - index))
    >>> batch = scheduler.schedule(); batch.prefill, scheduler.complete(batch)  # the shorter one pads, and waits
    ([(5, 0), (5, 0)], [])
    >>> batch = scheduler.schedule(); batch.decode_requests, [request.id for request in scheduler.complete(batch)]
    (2, [0, 1])
    """

    __slots__ = ("_longest_prompt", "_rows", "_step")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        watermark_blocks: int = 0,
    ) -> None:
        if prefix_cache is not None:
            raise ValueError("a padded batch starts every prompt at position 0: no prefix cache")
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            watermark_blocks=watermark_blocks,
        )
        self._rows = self._longest_prompt = self._step = 0

    def add(self, request: Request) -> None:
        """Queue a request; ValueError where its prompt passes a step, or its tokens the blocks."""
        if request.prompt_tokens > self.max_num_batched_tokens:
            raise ValueError(
                f"request {request.id}: its prompt of {request.prompt_tokens} tokens passes "
                f"max_num_batched_tokens={self.max_num_batched_tokens}"
            )
        super().add(request)

    def schedule(self) -> Batch:
        """Return the next step of the batch that runs; where none does, all prompts of a new one."""
        if not self.running:
            return self._begin()
        batch = Batch()
        for request in self.running:
            if request.generated_tokens < request.output_tokens:
                batch.slices.append(Slice(request, request.computed_tokens, 1, True))
        self._step += 1
        batch.decode_requests = batch.emitted = self._rows
        batch.decode_context_tokens = self._rows * (self._longest_prompt + self._step)
        return batch

    def _begin(self) -> Batch:
        batch = Batch()
        chosen: list[Request] = []
        longest_prompt = longest_output = 0
        for request in list(self.waiting)[: self.max_num_seqs]:
            prompt, output = max(longest_prompt, request.prompt_tokens), max(longest_output, request.output_tokens)
            rows = len(chosen) + 1
            needed = rows * self.blocks.blocks_for(prompt + output - 1) + self.watermark_blocks
            if rows * prompt > self.max_num_batched_tokens or needed > self.blocks.free_blocks:
                break
            longest_prompt, longest_output = prompt, output
            chosen.append(request)
        for request in chosen:
            self.admit(request, [], longest_prompt + longest_output - 1)
            batch.slices.append(Slice(request, 0, request.prompt_tokens, True))
        self._rows, self._longest_prompt, self._step = len(chosen), longest_prompt, 0
        if longest_prompt == 1:
            batch.decode_requests = batch.decode_context_tokens = len(chosen)
        else:
            batch.prefill = [(longest_prompt, 0)] * len(chosen)
        batch.emitted = len(chosen)
        return batch

    def complete(self, batch: Batch) -> list[Request]:
        """Record that the batch was computed; return all its requests once the last of them has its output."""
        for part in batch.slices:
            if part.request.blocks:
                part.request.computed_tokens += part.tokens
                part.request.generated_tokens += 1
        if any(request.generated_tokens < request.output_tokens for request in self.running):
            return []
        done, self.running = self.running, []
        for request in done:
            self.release(request)
        return done


def static_batching(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    requests: Sequence[Mapping[str, Any]],
    prefix_caching: bool = False,
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    Raises:
        ValueError: a limit is out of range.
    """
    scheduler = StaticBatching(
        KVBlocks(num_blocks, block_tokens),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    return _queue.replay(scheduler, requests, block_tokens=block_tokens)


STATIC_BATCHING = Procedure(
    reference=static_batching,
    examples=_queue.example,
    paper="Yu et al. 2022, Orca, OSDI, section 3.1; NVIDIA FasterTransformer",
    shapes={"200 chats, 64 at once": _queue.chat_example},
)
