"""What batching policies share: the two queues, admission into blocks, preemption by recompute, completion.

A policy adds `schedule`. Requests run in order of arrival: the victim of a preemption is the last of `running` and waits
again at the head of `waiting`. Units: tokens and blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.serving._request import NO_ADAPTER, Batch, Request, Scheduler
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache, block_hashes, most_reusable_blocks


class Queue(ABC):
    """Waiting and running requests over one pool of blocks."""

    __slots__ = ("blocks", "max_num_batched_tokens", "max_num_seqs", "prefix_cache", "running", "waiting", "watermark_blocks")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        watermark_blocks: int = 0,
    ) -> None:
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(f"{max_num_seqs=}, {max_num_batched_tokens=}: need 1 <= max_num_seqs <= max_num_batched_tokens")
        if not 0 <= watermark_blocks < blocks.num_blocks:
            raise ValueError(f"{watermark_blocks=}: need 0 <= watermark_blocks < num_blocks={blocks.num_blocks}")
        if prefix_cache is not None and prefix_cache.blocks is not blocks:
            raise ValueError("the prefix cache belongs to another pool of blocks")
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.prefix_cache = prefix_cache
        self.watermark_blocks = watermark_blocks
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: a length below 1, or it could never fit: its last step holds prompt_tokens + output_tokens - 1 tokens.
        """
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(
                f"request {request.id}: need at least 1 token of each, "
                f"prompt_tokens={request.prompt_tokens}, output_tokens={request.output_tokens}"
            )
        most = request.prompt_tokens + request.output_tokens - 1
        needed = self.blocks.blocks_for(most) + self.watermark_blocks
        if needed > self.blocks.num_blocks:
            raise ValueError(
                f"request {request.id}: its {most} tokens need {needed} blocks of {self.blocks.block_tokens}, "
                f"there are {self.blocks.num_blocks}"
            )
        self.waiting.append(request)

    @abstractmethod
    def schedule(self) -> Batch:
        """Choose the next step."""

    def complete(self, batch: Batch) -> list[Request]:
        """Record that the batch was computed; return the requests that finished, their blocks released."""
        done: list[Request] = []
        cache, block_tokens = self.prefix_cache, self.blocks.block_tokens
        for part in batch.slices:
            request = part.request
            if not request.blocks:
                continue  # it was ended while the batch ran
            request.computed_tokens += part.tokens
            if part.emits:
                request.generated_tokens += 1
                if request.generated_tokens >= request.output_tokens:
                    done.append(request)
            if cache is not None and (part.tokens > 1 or request.computed_tokens % block_tokens == 0):
                self.remember(cache, request)
        if done:
            for request in done:
                self.release(request)
            self.running[:] = [request for request in self.running if request.blocks]
        return done

    def finish(self, request: Request) -> None:
        """End a request now and release what it holds.

        Raises:
            ValueError: it is neither waiting nor running.
        """
        if request in self.running:
            self.running.remove(request)
            self.release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            raise ValueError(f"request {request.id} is neither waiting nor running")

    def remember(self, cache: PrefixCache, request: Request) -> None:
        """Make the request's full, computed blocks findable by others."""
        new = slice(
            request.remembered_blocks, min(request.computed_tokens // self.blocks.block_tokens, len(request.block_hashes))
        )
        if new.start < new.stop:
            cache.insert(request.block_hashes[new], request.blocks[new])
            request.remembered_blocks = new.stop

    def release(self, request: Request) -> None:
        """Give back a request's blocks; what a prefix cache keeps stays findable."""
        self.blocks.free(request.blocks)
        request.blocks = []

    def preempt_last(self, batch: Batch) -> Request:
        """Take the cache of the last running request, which then waits at the head and recomputes all it knew."""
        victim = self.running.pop()
        batch.drop(victim)
        self.release(victim)
        victim.computed_tokens = 0
        victim.cached_tokens = 0
        victim.remembered_blocks = 0
        victim.preemptions += 1
        batch.preempted.append(victim)
        self.waiting.appendleft(victim)
        return victim

    def cached_blocks(self, request: Request) -> list[int]:
        """Blocks of the request's longest cached prefix that it may reuse; nothing is taken."""
        if self.prefix_cache is None or not request.block_hashes:
            return []
        most = most_reusable_blocks(request.known_tokens, self.blocks.block_tokens)
        self.prefix_cache.fetch(request.block_hashes, most_blocks=most)
        return self.prefix_cache.find(request.block_hashes, most_blocks=most)

    def bring_forward(self) -> None:  # noqa: B027 (a policy may leave the order as it is)
        """Put the request to admit next at the head of `waiting`; first come, first served leaves it as it is."""

    def room(self, request: Request, cached: Sequence[int], tokens: int) -> bool:
        """Say whether a waiting request may start, when its next step needs `tokens` tokens in the cache."""
        return self.fits(cached, tokens, self.watermark_blocks)

    def fits(self, cached: Sequence[int], tokens: int, spare: int) -> bool:
        """Say whether a request with these cached blocks can hold `tokens` tokens and leave `spare` blocks free."""
        idle = sum(self.blocks.references(block) == 0 for block in cached)  # counted as free until they are taken
        return self.blocks.blocks_for(tokens) - len(cached) + idle + spare <= self.blocks.free_blocks

    def admit(self, request: Request, cached: Sequence[int], tokens: int) -> None:
        """Move the head of `waiting` to `running`, with its cached blocks and room for `tokens` tokens."""
        if self.prefix_cache is not None and request.block_hashes:
            most = most_reusable_blocks(request.known_tokens, self.blocks.block_tokens)
            request.blocks = self.prefix_cache.take(request.block_hashes, most_blocks=most)
        request.remembered_blocks = len(cached)
        request.computed_tokens = len(cached) * self.blocks.block_tokens
        request.cached_tokens = min(request.computed_tokens, request.prompt_tokens)
        request.blocks = request.blocks + self.blocks.allocate(self.blocks.blocks_for(tokens) - len(cached))
        self.waiting.popleft()
        self.running.append(request)


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats of about 512 prompt and 128 output tokens, arriving over 400 steps, on 4096 blocks of 16 tokens."""
    lengths = rng.geometric(1 / 512, size=200).clip(1, 1500)
    return {
        "num_blocks": 4096,
        "block_tokens": 16,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "prefix_caching": True,
        "requests": [
            {
                "step": int(rng.integers(0, 400)),
                "prompt": rng.integers(0, 32000, size=length).tolist(),
                "output_tokens": min(int(rng.geometric(1 / 128)), 500),
            }
            for length in lengths
        ],
    }


def replay(scheduler: Scheduler, requests: Sequence[Mapping[str, Any]], *, block_tokens: int) -> list[tuple[Any, ...]]:
    """Drive a scheduler until nothing is left; return one entry per step.

    A request is {"step": it arrives before this step, "prompt": token ids, "output_tokens": n}, with "stop_after": m where a
    stop token ends it after m tokens. An entry is (slices as (id, start, tokens, emits), preempted ids, finished ids,
    ids refused on arrival).
    """
    arrivals = deque(sorted(enumerate(requests), key=lambda pair: (pair[1]["step"], pair[0])))
    log: list[tuple[Any, ...]] = []
    step = 0
    while arrivals or scheduler.waiting or scheduler.running:
        refused = []
        while arrivals and arrivals[0][1]["step"] <= step:
            index, drawn = arrivals.popleft()
            hashes = block_hashes(drawn["prompt"], block_tokens)
            request = Request(
                index,
                len(drawn["prompt"]),
                drawn["output_tokens"],
                hashes,
                priority=drawn.get("priority", 0),
                client=drawn.get("client", 0),
                adapter=drawn.get("adapter", NO_ADAPTER),
                predicted_tokens=drawn.get("predicted_tokens", 0),
            )
            try:
                scheduler.add(request)
            except ValueError:
                refused.append(index)
        batch = scheduler.schedule()
        finished = scheduler.complete(batch)
        for part in batch.slices:
            request = part.request
            if part.emits and request not in finished and request.generated_tokens == requests[request.id].get("stop_after"):
                scheduler.finish(request)
                finished.append(request)
        log.append(
            (
                [(part.request.id, part.start, part.tokens, part.emits) for part in batch.slices],
                [request.id for request in batch.preempted],
                [request.id for request in finished],
                refused,
            )
        )
        step += 1
    return log


def play(
    make: Callable[..., Scheduler],
    requests: Sequence[Mapping[str, Any]],
    *,
    num_blocks: int,
    block_tokens: int,
    prefix_caching: bool,
    num_host_blocks: int = 0,
    **limits: Any,
) -> list[tuple[Any, ...]]:
    """Make a scheduler over a new pool of blocks, with a prefix cache where asked for, and `replay` requests on it.

    Raises:
        ValueError: a limit is out of range.
    """
    blocks = KVBlocks(num_blocks, block_tokens, num_host_blocks=num_host_blocks)
    scheduler = make(blocks, prefix_cache=PrefixCache(blocks) if prefix_caching else None, **limits)
    return replay(scheduler, requests, block_tokens=block_tokens)


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw requests with branching prompts, often for a pool too small for all of them at once."""
    prompts: list[list[int]] = []
    requests = []
    for _ in range(rng.integers(0, 9)):
        stem = prompts[rng.integers(len(prompts))] if prompts and rng.random() < 0.5 else []
        stem = stem[: int(rng.integers(0, len(stem) + 1))]
        prompts.append(stem + rng.integers(0, 3, size=rng.integers(1, 12)).tolist())
        drawn: dict[str, Any] = {
            "step": int(rng.integers(0, 8)),
            "prompt": prompts[-1],
            "output_tokens": int(rng.integers(1, 9)),
        }
        if rng.random() < 0.2:
            drawn["stop_after"] = int(rng.integers(1, 9))
        requests.append(drawn)
    max_num_seqs = int(rng.integers(1, 5))
    return {
        "num_blocks": int(rng.integers(4, 20)),
        "block_tokens": int(rng.integers(1, 5)),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + int(rng.integers(0, 20)),
        "prefix_caching": bool(rng.random() < 0.5),
        "requests": requests,
    }
