"""Forward passes filled token by token, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import FixedForward, run_policy
from llmlab.reference.serving.splitfuse import SPLITFUSE


@oracle(SPLITFUSE, library="exact enumeration")
def splitfuse(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(FixedForward, arguments)
