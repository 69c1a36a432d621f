"""Iterations as Orca states them, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import Iterations, run_policy
from llmlab.reference.serving.orca import ORCA


@oracle(ORCA, library="exact enumeration")
def orca(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(Iterations, arguments)
