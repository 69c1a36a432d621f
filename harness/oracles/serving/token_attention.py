"""Admission by playing the running requests forward step by step."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import PeakEstimate, run_policy
from llmlab.reference.serving.token_attention import TOKEN_ATTENTION


@oracle(TOKEN_ATTENTION, library="exact enumeration")
def token_attention(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(PeakEstimate, arguments)
