"""Adapters counted anew from the running requests at every question."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import Adapters, run_policy
from llmlab.reference.serving.multi_lora import MULTI_LORA


@oracle(MULTI_LORA, library="exact enumeration")
def multi_lora(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(Adapters, arguments)
