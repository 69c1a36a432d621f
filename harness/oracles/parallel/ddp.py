"""Training by torch's DistributedDataParallel."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._training import trained
from llmlab.reference.parallel.ddp import DDP


@oracle(DDP, library="torch.nn.parallel.DistributedDataParallel", needs=("torch",))
def ddp(*, bucket_bytes: int, first_bucket_bytes: int, **settings: Any) -> dict[str, Any]:
    return trained("ddp", bucket_bytes=bucket_bytes, **settings)
