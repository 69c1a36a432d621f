"""The policy as the papers state it, whole prompts first, then one token of every request, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive import run
from llmlab.reference.serving.continuous_batching import CONTINUOUS_BATCHING


@oracle(CONTINUOUS_BATCHING, library="exact enumeration")
def continuous_batching(**arguments: Any) -> list[tuple[Any, ...]]:
    return run("whole_prompts_first", arguments)
