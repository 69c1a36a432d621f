"""Guesses verified one by one, every quantity counted anew."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import Guesses, run_policy
from llmlab.reference.serving.speculative import SPECULATIVE


@oracle(SPECULATIVE, library="exact enumeration")
def speculative(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(Guesses, arguments)
