"""Admission by what every running request may still ask for, counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import PromisedChunks, PromisedPrompts, run_policy
from llmlab.reference.serving.inflight_batching import INFLIGHT_BATCHING


@oracle(INFLIGHT_BATCHING, library="exact enumeration")
def inflight_batching(*, chunked: bool, **arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(PromisedChunks if chunked else PromisedPrompts, arguments)
