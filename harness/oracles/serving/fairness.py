"""Orders by a key looked up at every question; virtual token counters added up anew from a ledger."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.serving._naive_policies import Fair, Keyed, run_policy
from llmlab.reference.serving.fairness import FAIRNESS


@oracle(FAIRNESS, library="exact enumeration")
def fairness(**arguments: Any) -> list[tuple[Any, ...]]:
    return run_policy(Fair if arguments["policy"] == "virtual_token_counter" else Keyed, arguments)
