"""A mixture of experts on one process, token by token under PyTorch's autograd, as oracle of parallel.expert."""

from __future__ import annotations

import math

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.expert import EXPERT


@oracle(EXPERT, library="torch autograd, one process, token by token", needs=("torch",))
def one_process(
    *, num_ranks: int, top_k: int = 2, capacity_factor: float | None = None, **arrays: np.ndarray
) -> dict[str, np.ndarray]:
    import torch

    leaves = {name.partition("_")[0]: torch.tensor(a, requires_grad=True) for name, a in arrays.items() if name != "dout_ND"}
    x, gate, up, down = leaves["x"], leaves["gate"], leaves["up"], leaves["down"]
    N, E = x.shape[0], gate.shape[1]
    chosen = torch.topk(torch.softmax(x @ gate, -1), top_k, dim=-1)
    gates = chosen.values / chosen.values.sum(-1, keepdim=True)
    kept = np.ones((N, top_k), dtype=bool)
    if capacity_factor is not None:
        share = N // num_ranks
        room = max(1, math.ceil(share * top_k * capacity_factor / E))
        for first in range(0, N, share):
            taken = dict.fromkeys(range(E), 0)
            for choice in range(top_k):
                for token in range(first, first + share):
                    wanted = int(chosen.indices[token, choice])
                    kept[token, choice] = taken[wanted] < room
                    taken[wanted] += 1
    out = []
    for token in range(N):
        total = x[token] * 0
        for choice in np.flatnonzero(kept[token]):
            e = chosen.indices[token, choice]
            total = total + gates[token, choice] * (torch.relu(x[token] @ up[e]) @ down[e])
        out.append(total)
    result = torch.stack(out)
    result.backward(torch.tensor(arrays["dout_ND"]))
    found = {f"d{name}": leaf.grad.numpy() for name, leaf in leaves.items()}
    return {"out": result.detach().numpy(), **found, "kept": kept}
