"""The library's own data parallelism on the references' small network: DDP, ZeroRedundancyOptimizer, FSDP2, on gloo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]


def trained(
    way: str,
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_ranks: int,
    optimizer: str,
    learning_rate: float,
    bucket_bytes: int = 25 << 20,
) -> dict[str, Any]:
    """Train by `way`: "ddp", "zero_1", "fsdp" (reshards after forward) or "fsdp_kept" (does not)."""
    from llmlab.kernels.parallel import _world

    settings = {
        "way": way,
        "weights": list(weights),
        "batches": list(batches),
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "bucket_bytes": bucket_bytes,
    }
    return _world.run(one_rank, [settings] * num_ranks)[0]


def one_rank(
    way: str,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    optimizer: str,
    learning_rate: float,
    bucket_bytes: int,
) -> dict[str, Any]:
    """Train on this rank; return the full weights and the mean losses."""
    import torch
    import torch.distributed as dist
    from torch import nn

    class Layer(nn.Module):
        def __init__(self, weight: np.ndarray, bias: np.ndarray, last: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.from_numpy(weight.copy()))
            self.bias = nn.Parameter(torch.from_numpy(bias.copy()))
            self.last = last

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = x @ self.weight + self.bias
            return out if self.last else torch.tanh(out)

    me, n = dist.get_rank(), dist.get_world_size()
    pairs = list(zip(weights[::2], weights[1::2]))
    model: Any = nn.Sequential(*(Layer(*pair, last=place == len(pairs) - 1) for place, pair in enumerate(pairs)))
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    if way.startswith("fsdp"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (n,))
        for layer in model:
            fully_shard(layer, mesh=mesh, reshard_after_forward=way == "fsdp")
        fully_shard(model, mesh=mesh)
    else:
        model = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=bucket_bytes / 2**20)
    if way == "zero_1":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        steps: Any = ZeroRedundancyOptimizer(model.parameters(), kind, lr=learning_rate)
    else:
        steps = kind(model.parameters(), lr=learning_rate)
    losses = []
    for x, y in batches:
        mine = slice(len(x) // n * me, len(x) // n * (me + 1))
        loss = ((model(torch.from_numpy(x[mine].copy())) - torch.from_numpy(y[mine].copy())) ** 2).mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total) / n)
    whole = [one.full_tensor() if hasattr(one, "full_tensor") else one for one in model.parameters()]
    return {"weights": [one.detach().numpy().copy() for one in whole], "losses": losses}
