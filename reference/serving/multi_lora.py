"""Many low-rank adapters over one base model: requests of different adapters share a batch (arXiv:2311.03285, 2310.18547).

S-LoRA (Sheng et al. 2023) keeps adapters in host memory and brings those of the running requests to the device; Punica (Chen
et al. 2023) multiplies each token with its own adapter in one kernel. At most `max_loras` adapters are on the device. A
request whose adapter has no place lets later ones pass, as in vLLM. Units: adapters, tokens and blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import NO_ADAPTER, Request
from llmlab.reference.serving.chunked_prefill import ChunkedPrefill
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


class MultiLora(ChunkedPrefill):
    """Chunked prefill with a place on the device for `max_loras` adapters; the one unused longest makes room.

    Args:
        blocks, max_num_seqs, max_num_batched_tokens, prefix_cache, max_chunk_tokens, watermark_blocks: as for `ChunkedPrefill`.
        max_loras: adapters on the device, at least 1.

    Attributes:
        resident: adapters on the device, the one unused longest first.
        loads: adapters copied to the device since `take_loads`.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = MultiLora(KVBlocks(8, 4), max_num_seqs=3, max_num_batched_tokens=16, max_loras=1)
    >>> for index, adapter in enumerate((5, 6, 5)):
    ...     scheduler.add(Request(index, prompt_tokens=4, output_tokens=2, adapter=adapter))
    >>> [part.request.id for part in scheduler.schedule().slices], scheduler.take_loads()
    ([0, 2], 1)
    """

    __slots__ = ("loads", "max_loras", "resident")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        max_chunk_tokens: int | None = None,
        watermark_blocks: int = 0,
        max_loras: int = 1,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            max_chunk_tokens=max_chunk_tokens,
            watermark_blocks=watermark_blocks,
        )
        if max_loras < 1:
            raise ValueError(f"{max_loras=}: need at least 1")
        self.max_loras = max_loras
        self.resident: OrderedDict[int, None] = OrderedDict()
        self.loads = 0

    def bring_forward(self) -> None:
        """Put the earliest arrival whose adapter is in use or has a place at the head; where there is none, the earliest."""
        used = {request.adapter for request in self.running} - {NO_ADAPTER}
        full = len(used) >= self.max_loras
        place = min(
            range(len(self.waiting)),
            key=lambda i: (full and self.waiting[i].adapter not in used | {NO_ADAPTER}, self.waiting[i].id),
        )
        if place:
            chosen = self.waiting[place]
            del self.waiting[place]
            self.waiting.appendleft(chosen)

    def room(self, request: Request, cached: Sequence[int], tokens: int) -> bool:
        """Say whether the request fits, and its adapter."""
        used = {one.adapter for one in self.running} - {NO_ADAPTER}
        placed = request.adapter == NO_ADAPTER or request.adapter in used or len(used) < self.max_loras
        return placed and super().room(request, cached, tokens)

    def admit(self, request: Request, cached: Sequence[int], tokens: int) -> None:
        """Start a request; its adapter is copied to the device unless it is there."""
        super().admit(request, cached, tokens)
        adapter = request.adapter
        if adapter == NO_ADAPTER:
            return
        if adapter in self.resident:
            self.resident.move_to_end(adapter)
            return
        if len(self.resident) == self.max_loras:
            used = {one.adapter for one in self.running}
            del self.resident[next(one for one in self.resident if one not in used)]
        self.resident[adapter] = None
        self.loads += 1

    def take_loads(self) -> int:
        """Return the adapters copied to the device since the last call."""
        counted, self.loads = self.loads, 0
        return counted


def multi_lora(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    max_loras: int,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    A request may name an "adapter". Requests must be given in order of arrival. Prefixes are shared within an adapter only:
    with a prefix cache the identities of blocks have to differ between adapters.

    Raises:
        ValueError: a limit is out of range.
    """
    return _queue.play(
        MultiLora,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_loras=max_loras,
    )


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw requests of four adapters and of none, with places for one to three."""
    drawn = _queue.example(rng) | {"max_loras": int(rng.integers(1, 4)), "prefix_caching": False}
    drawn["requests"].sort(key=lambda request: request["step"])
    for request in drawn["requests"]:
        request["adapter"] = int(rng.integers(NO_ADAPTER, 4))
    return drawn


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats over 32 adapters, 8 of them on the device."""
    drawn = _queue.chat_example(rng) | {"max_loras": 8, "prefix_caching": False}
    drawn["requests"].sort(key=lambda request: request["step"])
    for request in drawn["requests"]:
        request["adapter"] = int(rng.zipf(1.5)) % 32
    return drawn


MULTI_LORA = Procedure(
    reference=multi_lora,
    examples=example,
    paper="arXiv:2311.03285; arXiv:2310.18547",
    shapes={"200 chats over 32 adapters": chat_example},
)
