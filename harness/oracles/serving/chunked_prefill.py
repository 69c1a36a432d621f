"""The policy as the papers state it, decodes first, then pieces of prompts, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive import run
from llmlab.reference.serving.chunked_prefill import CHUNKED_PREFILL


@oracle(CHUNKED_PREFILL, library="exact enumeration")
def chunked_prefill(**arguments: Any) -> list[tuple[Any, ...]]:
    return run("decodes_first", arguments)
