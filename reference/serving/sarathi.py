"""Sarathi-Serve: stall-free batches, with memory for the whole prompt taken before its first piece (arXiv:2403.02310).

Algorithm 3 of Agrawal et al. 2024: running decodes first, then the prompt that was begun, then new ones, within a budget of
tokens chosen for the objective on inter-token latency. Its release, built on vLLM's first block manager, lets a request start
when its WHOLE prompt fits and 1 % of the blocks stay free; vLLM's second scheduler (`chunked_prefill`) asks for the first
piece only. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


class Sarathi(ChunkedPrefill):
    """Chunked prefill whose admission waits until the whole prompt fits beside a watermark.

    Args:
        blocks: the pool of KV blocks.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens of one step.
        prefix_cache: over the same pool, or None.
        watermark_blocks: blocks an admission leaves free; 1 % of the pool where None.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = Sarathi(KVBlocks(4, 4), max_num_seqs=2, max_num_batched_tokens=4)
    >>> for index in range(2):
    ...     scheduler.add(Request(index, prompt_tokens=12, output_tokens=1))
    >>> for _ in range(3):
    ...     finished = scheduler.complete(scheduler.schedule())
    >>> len(finished), len(scheduler.running)  # the second prompt waited for 3 free blocks, although its first piece needs one
    (1, 0)
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

    def room(self, request: Request, cached: Sequence[int], tokens: int) -> bool:
        """Say whether all a waiting request knows fits, beside what the prompts already begun still need."""
        need = self.blocks.blocks_for
        begun = sum(max(0, need(one.known_tokens) - len(one.blocks)) for one in self.running if one.missing_tokens > 1)
        return self.fits(cached, request.known_tokens, self.watermark_blocks + begun)


def sarathi(
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
        Sarathi,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


SARATHI = Procedure(
    reference=sarathi,
    examples=_queue.example,
    paper="arXiv:2403.02310",
    shapes={"200 chats, 64 at once": _queue.chat_example},
)
