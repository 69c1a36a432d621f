"""Dynamic SplitFuse: every forward pass has the same number of tokens (Holmes et al. 2024, FastGen, arXiv:2401.08671).

Long prompts are decomposed over several passes and short ones composed to fill a pass exactly, because throughput saturates
at a fixed number of tokens. A request that gets no block stalls and keeps its cache; only when nothing at all could run does
the latest one give its cache up. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request, Slice


class SplitFuse(_queue.Queue):
    """Decodes first, then as many prompt tokens as fill the pass and the blocks; stalls instead of preempting.

    Args:
        blocks: the pool of KV blocks.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens of one forward pass.
        prefix_cache: over the same pool, or None.
        watermark_blocks: blocks an admission leaves free.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> from llmlab.reference.serving.kv_blocks import KVBlocks
    >>> scheduler = SplitFuse(KVBlocks(8, 4), max_num_seqs=4, max_num_batched_tokens=6)
    >>> for index, prompt in enumerate((4, 5)):
    ...     scheduler.add(Request(index, prompt_tokens=prompt, output_tokens=1))
    >>> scheduler.schedule().prefill  # the second prompt is split so that the pass has 6 tokens
    [(4, 0), (2, 0)]
    """

    __slots__ = ()

    def schedule(self) -> Batch:
        """Return one pass."""
        batch = Batch()
        for decoding in (True, False):
            for request in self.running:
                if (request.missing_tokens == 1) is decoding:
                    self._extend(request, batch)
        while self.waiting and len(self.running) < self.max_num_seqs and batch.tokens < self.max_num_batched_tokens:
            if not self._begin(self.waiting[0], batch):
                break
        if not batch.slices and self.running:
            self.preempt_last(batch)
        return batch

    def _extend(self, request: Request, batch: Batch) -> None:
        """Give a running request as much of the pass as budget and free blocks allow, perhaps nothing."""
        held = (len(request.blocks) + self.blocks.free_blocks) * self.blocks.block_tokens - request.computed_tokens
        tokens = min(request.missing_tokens, self.max_num_batched_tokens - batch.tokens, held)
        if tokens < 1:
            return
        more = self.blocks.blocks_for(request.computed_tokens + tokens) - len(request.blocks)
        if more > 0:
            request.blocks += self.blocks.allocate(more)
        batch.put(Slice(request, request.computed_tokens, tokens, tokens == request.missing_tokens))

    def _begin(self, request: Request, batch: Batch) -> bool:
        """Start a waiting request with its first piece, if that fits."""
        cached = self.cached_blocks(request)
        start = len(cached) * self.blocks.block_tokens
        tokens = min(request.known_tokens - start, self.max_num_batched_tokens - batch.tokens)
        if batch.preempted or not self.room(request, cached, start + tokens):
            return False
        self.admit(request, cached, start + tokens)
        batch.put(Slice(request, start, tokens, tokens == request.missing_tokens))
        return True


def splitfuse(
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
        SplitFuse,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


SPLITFUSE = Procedure(
    reference=splitfuse,
    examples=_queue.example,
    paper="arXiv:2401.08671",
    shapes={"200 chats, 64 at once": _queue.chat_example},
)
