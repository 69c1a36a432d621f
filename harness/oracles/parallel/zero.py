"""Training by torch's own: DistributedDataParallel, ZeroRedundancyOptimizer, and fully_shard with and without resharding."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._training import trained
from llmlab.reference.parallel.zero import ZERO


@oracle(ZERO, library="torch DistributedDataParallel, ZeroRedundancyOptimizer, fully_shard", needs=("torch",))
def zero(*, stage: int, offload: bool, **settings: Any) -> dict[str, Any]:
    return trained(("ddp", "zero_1", "fsdp_kept", "fsdp")[stage], **settings)
