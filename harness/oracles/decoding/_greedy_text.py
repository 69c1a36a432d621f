"""transformers' own greedy text, for decodings that must not change it."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.harness.oracles.decoding.greedy import greedy
from llmlab.reference.decoding._tree import Verified
from llmlab.reference.decoding.greedy import LlamaStep


def greedy_text(step: LlamaStep, prompt: Sequence[int], max_tokens: int, stop_ids: Sequence[int]) -> Verified:
    """The text alone: how many calls another way of decoding needs, the library cannot say."""
    plain = greedy(step, prompt, max_tokens=max_tokens, stop_ids=stop_ids)
    return Verified(plain.ids, plain.reason)
