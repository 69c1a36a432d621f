"""LightLLM's token attention: memory token by token, admission by the estimated peak over the remaining lifetimes.

With blocks of one token nothing is wasted, so what matters is the most that the running requests will hold together at any
future step. Ordered by remaining output r, the i-th to leave last sees i requests, each grown by r; the peak is the largest
such sum (ModelTC/lightllm, router; the estimate is studied in Gong et al. 2025, past-future scheduler, arXiv:2507.10150).
Prompts and decodes have steps of their own. Units: tokens and blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.serving import _queue
from llmlab.reference.serving._request import Batch, Request
from llmlab.reference.serving.continuous_batching import ContinuousBatching
from llmlab.reference.serving.kv_blocks import KVBlocks
from llmlab.reference.serving.prefix_cache import PrefixCache


def peak_tokens(requests: Iterable[tuple[int, int]]) -> int:
    """Most tokens held at once when each request (tokens now, tokens still to come) grows by one per step and then leaves.

    >>> peak_tokens([(5, 1), (2, 4)])  # 6 + 3 when the first leaves; the second alone ends with 6
    9
    """
    peak = held = 0
    for count, (now, more) in enumerate(sorted(requests, key=lambda one: -one[1]), start=1):
        held += now
        peak = max(peak, held + count * more)
    return peak


class TokenAttention(ContinuousBatching):
    """Admits while the estimated peak fits; new prompts interrupt the decodes at most every `max_wait_steps` steps.

    Args:
        blocks: the pool; LightLLM's blocks hold one token.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens of one step of prompts.
        prefix_cache: over the same pool, or None.
        watermark_blocks: blocks an admission leaves free.
        max_wait_steps: decode steps before new prompts are looked at again.

    Raises:
        ValueError: a limit is out of range; from `add`, a request that can never fit.

    >>> scheduler = TokenAttention(KVBlocks(9, 1), max_num_seqs=4, max_num_batched_tokens=9)
    >>> for index in range(3):
    ...     scheduler.add(Request(index, prompt_tokens=2, output_tokens=3))
    >>> len(scheduler.schedule().slices)  # two end with 4 tokens each; a third would pass 9
    2
    """

    __slots__ = ("_decoded", "_old", "max_wait_steps")

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: PrefixCache | None = None,
        watermark_blocks: int = 0,
        max_wait_steps: int = 10,
    ) -> None:
        super().__init__(
            blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_cache=prefix_cache,
            watermark_blocks=watermark_blocks,
        )
        if max_wait_steps < 0:
            raise ValueError(f"{max_wait_steps=}: need at least 0")
        self.max_wait_steps = max_wait_steps
        self._decoded = 0
        self._old = 0  # running requests that were there before this step

    def schedule(self) -> Batch:
        """Return prompts when it is their turn and they fit, else one token of every running request."""
        batch = Batch()
        self._old = len(self.running)
        if self.waiting and (not self.running or self._decoded >= self.max_wait_steps):
            self._decoded = 0
            self._prefill(batch)
        if not batch.slices:
            self._decode(batch)
            self._decoded += 1
        return batch

    def room(self, request: Request, cached: Sequence[int], tokens: int) -> bool:
        """Say whether the estimated peak fits when this request starts.

        A prompt computed in this step has its next token stored together with those of the others, so it is one ahead.
        """
        lives = [(one.known_tokens, self._still(one)) for one in self.running[: self._old]]
        for one in [*self.running[self._old :], request]:
            if still := self._still(one):
                lives.append((one.known_tokens + 1, still - 1))
        capacity = (self.blocks.num_blocks - self.watermark_blocks) * self.blocks.block_tokens
        return peak_tokens(lives) <= capacity and self.fits(cached, tokens, self.watermark_blocks)

    @staticmethod
    def _still(request: Request) -> int:
        """Tokens it is still expected to store, never more than it may; the last one it emits is not stored."""
        return max(0, min(request.expected_tokens, request.output_tokens) - request.generated_tokens - 1)


def token_attention(
    *,
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    max_wait_steps: int,
    requests: Sequence[Mapping[str, Any]],
    block_tokens: int = 1,
) -> list[tuple[Any, ...]]:
    """Schedule requests to the end; return per step the slices (id, start, tokens, emits), preempted, finished and refused ids.

    Raises:
        ValueError: a limit is out of range.
    """
    return _queue.play(
        TokenAttention,
        requests,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_wait_steps=max_wait_steps,
    )


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw requests for a pool often too small for all, some with a guess of their output that is wrong."""
    drawn = _queue.example(rng) | {"block_tokens": 1, "max_wait_steps": int(rng.integers(0, 4))}
    drawn["num_blocks"] *= 2
    for request in drawn["requests"]:
        if rng.random() < 0.5:
            request["predicted_tokens"] = int(rng.integers(1, 9))
    return drawn


def chat_example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw 200 chats on 65536 blocks of one token."""
    return _queue.chat_example(rng) | {"num_blocks": 65536, "block_tokens": 1, "max_wait_steps": 10}


TOKEN_ATTENTION = Procedure(
    reference=token_attention,
    examples=example,
    paper="ModelTC/lightllm; arXiv:2507.10150",
    shapes={"200 chats, 64 at once": chat_example},
)
