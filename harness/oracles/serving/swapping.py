"""Preemption to host memory, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import HostSwap, run_policy
from llmlab.reference.serving.swapping import SWAPPING


@oracle(SWAPPING, library="exact enumeration")
def swapping(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(HostSwap, arguments)
