"""In-flight batching that admits a request only when its whole output will fit: nothing is ever preempted.

This is GUARANTEED_NO_EVICT of TensorRT-LLM's capacity scheduler (its other policy, MAX_UTILIZATION, admits what fits now and
preempts by recompute, as `chunked_prefill` does) and the token budget of text-generation-inference. The idea of
reserving the longest output is Orca's (Yu et al., OSDI 2022, section 4.2); here blocks are promised, not taken, so a
prefix cache may use them meanwhile. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.continuous_batching import ContinuousBatching


class Promises(_queue.Queue):
    """Admission by the blocks that every running request may still ask for."""

    __slots__ = ()

    def room(self, request: Request, cached: Sequence[int], tokens: int) -> bool:
        """Say whether a waiting request fits to its end beside all running ones to theirs."""
        need = self.blocks.blocks_for
        promised = sum(need(one.prompt_tokens + one.output_tokens - 1) - len(one.blocks) for one in self.running)
        most = request.prompt_tokens + request.output_tokens - 1
        return self.fits(cached, most, self.watermark_blocks + promised)


class GuaranteedNoEvict(Promises, ChunkedPrefill):
    """Decodes and pieces of prompts share a step; a request starts when prompt and longest output fit.

    Args:
        blocks, max_num_seqs, max_num_batched_tokens, prefix_cache, max_chunk_tokens, watermark_blocks: as for `ChunkedPrefill`.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> from llmlab.reference.serving.kv_blocks import KVBlocks
    >>> scheduler = GuaranteedNoEvict(KVBlocks(4, 4), max_num_seqs=2, max_num_batched_tokens=16)
    >>> for index in range(2):
    ...     scheduler.add(Request(index, prompt_tokens=4, output_tokens=5))
    >>> len(scheduler.schedule().slices)  # 8 tokens each at the end: both fit the 16
    2
    """

    __slots__ = ()


class GuaranteedPrefillFirst(Promises, ContinuousBatching):
    """Whole prompts go before decodes; a request starts when prompt and longest output fit."""

    __slots__ = ()


def inflight_batching(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    chunked: bool,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    Raises:
        ValueError: a limit is out of range.
    """
    policy = GuaranteedNoEvict if chunked else GuaranteedPrefillFirst
    return _queue.play(
        policy,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw requests for a pool often too small for all, with and without chunks."""
    return _queue.example(rng) | {"chunked": bool(rng.random() < 0.5)}


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats."""
    return _queue.chat_example(rng) | {"chunked": True}


INFLIGHT_BATCHING = Procedure(
    reference=inflight_batching,
    examples=example,
    paper="NVIDIA TensorRT-LLM documentation, capacity scheduler policy; Yu et al. 2022, Orca, OSDI",
    shapes={"200 chats, 64 at once": chat_example},
)
