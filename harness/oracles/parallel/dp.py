"""Training by torch's own optimizer and autograd on the whole batch, with the gradients of older weights where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.dp import DP


@oracle(DP, library="torch.optim on the whole batch", needs=("torch",))
def dp(
    *,
    weights: Sequence[np.ndarray],
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    num_workers: int,
    num_servers: int,
    optimizer: str,
    learning_rate: float,
    staleness: int,
) -> dict[str, Any]:
    import torch

    served = [torch.from_numpy(array.copy()) for array in weights]
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    steps = kind(served, lr=learning_rate)
    versions, losses = [[one.clone() for one in served]], []
    for x, y in batches:
        old = [one.clone().requires_grad_() for one in versions[-1 - min(staleness, len(versions) - 1)]]
        out = torch.from_numpy(x.copy())
        for weight, bias in zip(old[::2], old[1::2]):
            out = torch.nn.functional.linear(out, weight.T, bias)
            out = out if weight is old[-2] else torch.tanh(out)
        loss = torch.nn.functional.mse_loss(out, torch.from_numpy(y.copy()))
        for one, gradient in zip(served, torch.autograd.grad(loss, old)):
            one.grad = gradient
        steps.step()
        versions.append([one.clone() for one in served])
        losses.append(loss.item())
    return {"weights": [one.numpy() for one in served], "losses": losses}
