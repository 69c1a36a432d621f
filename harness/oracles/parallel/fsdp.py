"""Training by torch's fully_shard (FSDP2), a layer a unit."""

from __future__ import annotations

from typing import Any

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.parallel._training import trained
from llmlab.reference.parallel.fsdp import FSDP


@oracle(FSDP, library="torch.distributed.fsdp.fully_shard", needs=("torch",))
def fsdp(*, reshard_after_forward: bool, **settings: Any) -> dict[str, Any]:
    return trained("fsdp" if reshard_after_forward else "fsdp_kept", **settings)
