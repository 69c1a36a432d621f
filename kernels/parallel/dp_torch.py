"""Parameter servers and workers as real processes: shares go down and gradients up as messages; servers keep the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import exchange, tensor
from llmlab.kernels.parallel._training_torch import Step, loss_of
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._training import Batch, shard_batch, unflatten
from llmlab.reference.parallel.dp import DP


@twin(DP, backend="torch", dtypes=("float64",))
def dp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_workers: int,
    num_servers: int = 1,
    optimizer: str = "sgd",
    learning_rate: float = 0.1,
    staleness: int = 0,
) -> dict[str, Any]:
    settings = {
        "weights": list(weights),
        "batches": list(batches),
        "num_workers": num_workers,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "staleness": staleness,
    }
    found = _world.run(one_rank, [settings] * (num_workers + num_servers))
    losses = np.mean(found[:num_workers], axis=0).tolist()
    return {"weights": unflatten(np.concatenate(found[num_workers:]), weights), "losses": losses}


def one_rank(
    weights: Sequence[np.ndarray],
    batches: Sequence[Batch],
    num_workers: int,
    optimizer: str,
    learning_rate: float,
    staleness: int,
) -> Any:
    """Work, or serve; return the losses of a worker or the last share of a server."""
    shares = torch.tensor_split(torch.cat([tensor(array).ravel() for array in weights]), dist.get_world_size() - num_workers)
    if dist.get_rank() >= num_workers:
        return serve(
            shares[dist.get_rank() - num_workers].clone(), len(batches), num_workers, optimizer, learning_rate, staleness
        )
    sizes = [array.size for array in weights]
    losses = []
    for batch in batches:
        pulled = [torch.empty_like(share) for share in shares]
        exchange(into=[(share, num_workers + server) for server, share in enumerate(pulled)])
        parts = torch.split(torch.cat(pulled), sizes)
        held = [part.view(array.shape).requires_grad_() for part, array in zip(parts, weights)]
        x_BI, y_BO = shard_batch(batch, num_workers)[dist.get_rank()]
        loss = loss_of(held, tensor(x_BI), tensor(y_BO))
        flat = torch.cat([gradient.ravel() for gradient in torch.autograd.grad(loss, held)])
        pieces = torch.tensor_split(flat, len(shares))
        exchange(out=[(piece, num_workers + server) for server, piece in enumerate(pieces)])
        losses.append(loss.item())
    return losses


def serve(
    share: torch.Tensor, num_steps: int, num_workers: int, optimizer: str, learning_rate: float, staleness: int
) -> np.ndarray:
    """Answer pulls with the share as it was `staleness` steps ago, and step along the mean of what is pushed."""
    step, versions = Step(optimizer, learning_rate, share), [share.clone()]
    for _ in range(num_steps):
        old = versions[max(0, len(versions) - 1 - staleness)]
        exchange(out=[(old, worker) for worker in range(num_workers)])
        pushed = [torch.empty_like(share) for _ in range(num_workers)]
        exchange(into=[(gradient, worker) for worker, gradient in enumerate(pushed)])
        step(share, torch.stack(pushed).sum(0) / num_workers)
        versions.append(share.clone())
    return share.cpu().numpy()
