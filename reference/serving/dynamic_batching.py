"""Dynamic batching: a batch starts when it is full or when its oldest request has waited long enough.

Delayed batching of Clipper (Crankshaw et al., NSDI 2017, section 4.3.2) and the dynamic batcher of the Triton inference server
(`max_queue_delay_microseconds`). The batch itself then runs as in static batching. A scheduler has no clock, so time
comes with the calls: whoever drives it sets `now_ns` before `add` and `schedule`, and where a step is empty `wake_ns` says when
to ask again. Units: nanoseconds, tokens and blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache
from llmlab.reference.serving.static_batching import StaticBatching


class DynamicBatching(StaticBatching):
    """Static batches that wait for company, at most `window_ns` from the arrival of their oldest request.

    Args:
        blocks, max_num_seqs, max_num_batched_tokens, prefix_cache, watermark_blocks: as for `StaticBatching`.
        window_ns: longest wait for a full batch.

    Attributes:
        now_ns: the present, set by the executor.
        wake_ns: when a batch that waits for company is due; None where nothing waits for the clock.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = DynamicBatching(KVBlocks(8, 4), max_num_seqs=2, max_num_batched_tokens=16, window_ns=50)
    >>> scheduler.now_ns = 100; scheduler.add(Request(0, prompt_tokens=5, output_tokens=1))
    >>> len(scheduler.schedule().slices), scheduler.wake_ns
    (0, 150)
    >>> scheduler.now_ns = 150; len(scheduler.schedule().slices), scheduler.wake_ns
    (1, None)
    """

    __slots__ = ("_arrived_ns", "now_ns", "wake_ns", "window_ns")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        watermark_blocks: int = 0,
        window_ns: int = 0,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            watermark_blocks=watermark_blocks,
        )
        if window_ns < 0:
            raise ValueError(f"{window_ns=}: need at least 0")
        self.window_ns = window_ns
        self.now_ns = 0
        self.wake_ns: int | None = None
        self._arrived_ns: dict[int, int] = {}

    def add(self, request: Request) -> None:
        """Queue a request that arrives now; ValueError if it can never fit."""
        super().add(request)
        self._arrived_ns[request.id] = self.now_ns

    def schedule(self) -> Batch:
        """Return the next step; an empty one, with `wake_ns` set, while a batch still waits for company."""
        self.wake_ns = None
        if not self.running and 0 < len(self.waiting) < self.max_num_seqs:
            due_ns = self._arrived_ns[self.waiting[0].id] + self.window_ns
            if self.now_ns < due_ns:
                self.wake_ns = due_ns
                return Batch()
        batch = super().schedule()
        for part in batch.slices:
            self._arrived_ns.pop(part.request.id, None)
        return batch

    def finish(self, request: Request) -> None:
        """End a request now and release what it holds."""
        super().finish(request)
        self._arrived_ns.pop(request.id, None)


def dynamic_batching(
    *,
    num_blocks: int,
    block_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    window_ns: int,
    step_ns: int,
    requests: Sequence[Mapping[str, Any]],
) -> list[tuple[int, list[int], list[int]]]:
    """Play requests to the end where each step takes `step_ns`; return per step its start, the ids computed, the ids finished.

    A request is {"at_ns": arrival, "prompt_tokens": n, "output_tokens": n}. Arrivals at an instant come before the step that
    starts at it. Requests that can never fit are left out.

    Raises:
        ValueError: a limit is out of range.
    """
    scheduler = DynamicBatching(
        KVBlocks(num_blocks, block_tokens),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        window_ns=window_ns,
    )
    coming = deque(sorted(enumerate(requests), key=lambda pair: (pair[1]["at_ns"], pair[0])))
    log: list[tuple[int, list[int], list[int]]] = []
    now_ns = 0
    while coming or scheduler.waiting or scheduler.running:
        while coming and coming[0][1]["at_ns"] <= now_ns:
            index, drawn = coming.popleft()
            scheduler.now_ns = drawn["at_ns"]
            try:
                scheduler.add(Request(index, drawn["prompt_tokens"], drawn["output_tokens"]))
            except ValueError:
                continue
        scheduler.now_ns = now_ns
        batch = scheduler.schedule()
        if batch.slices:
            finished = scheduler.complete(batch)
            log.append((now_ns, [part.request.id for part in batch.slices], [request.id for request in finished]))
            now_ns += step_ns
            continue
        moments = [coming[0][1]["at_ns"]] if coming else []
        moments += [scheduler.wake_ns] if scheduler.wake_ns is not None else []
        now_ns = min(moments, default=now_ns)
    return log


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a few requests within some windows, on a pool that is sometimes small."""
    max_num_seqs = int(rng.integers(1, 5))
    return {
        "num_blocks": int(rng.integers(4, 30)),
        "block_tokens": int(rng.integers(1, 5)),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + int(rng.integers(0, 30)),
        "window_ns": int(rng.integers(0, 30)),
        "step_ns": int(rng.integers(1, 8)),
        "requests": [
            {
                "at_ns": int(rng.integers(0, 60)),
                "prompt_tokens": int(rng.integers(1, 12)),
                "output_tokens": int(rng.integers(1, 6)),
            }
            for _ in range(rng.integers(0, 10))
        ],
    }


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 requests over 20 seconds for batches of 16 within 50 ms."""
    chat = _queue.chat_example(rng)
    return {
        "num_blocks": 4096,
        "block_tokens": 16,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 32768,
        "window_ns": 50_000_000,
        "step_ns": 20_000_000,
        "requests": [
            {
                "at_ns": one["step"] * 50_000_000,
                "prompt_tokens": len(one["prompt"]),
                "output_tokens": one["output_tokens"],
            }
            for one in chat["requests"]
        ],
    }


DYNAMIC_BATCHING = Procedure(
    reference=dynamic_batching,
    examples=example,
    paper="Crankshaw et al. 2017, Clipper, NSDI, section 4.3.2; Triton inference server, dynamic batcher",
    shapes={"200 requests, batches of 16 within 50 ms": chat_example},
)
