"""Stall-free batches of prompts that fit whole, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import WholePromptFits, run_policy
from llmlab.reference.serving.sarathi import SARATHI


@oracle(SARATHI, library="exact enumeration")
def sarathi(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(WholePromptFits, arguments)
