"""Ulysses over torch.distributed: all-to-all from positions to heads, fused attention, all-to-all back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Exchanged, Peers, grads, leaf, on_mesh
from llmlab.kernels.twin import twin
from llmlab.reference.attention.ulysses import ULYSSES
from llmlab.reference.parallel._exchange import split


def swap(x: Tensor, peers: Peers, cut: int, join: int) -> Tensor:
    """Cut `x` along one axis over the ranks and join what comes along another."""
    rows = torch.stack(x.chunk(peers.size, cut))
    ones = [1] * peers.size
    return torch.cat(Exchanged.apply(rows, peers, ones, ones).unbind(), join)


@twin(ULYSSES, backend="torch", dtypes=("float64",))
def ulysses(
    *,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    dout_BTKGH: np.ndarray,
    num_ranks: int,
    causal: bool = True,
    traffic: object = None,
) -> dict[str, np.ndarray]:
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    cut = {"q": q_BTKGH, "k": k_BSKH, "v": v_BSKH, "out": dout_BTKGH}
    shards = {name: split(whole, num_ranks, 1, "positions") for name, whole in cut.items()}

    def program(peers: Peers) -> dict[str, np.ndarray]:
        own = {name: leaf(shards[name][peers.rank]) for name in "qkv"}
        q, k, v = (swap(part, peers, 2, 1) for part in own.values())
        mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else None
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q.flatten(2, 3).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True
        )
        out = swap(mixed.transpose(1, 2).reshape(q.shape), peers, 1, 2)
        out.backward(torch.tensor(shards["out"][peers.rank]))
        return {"out": out.detach().numpy(), **grads(own)}

    ranks = on_mesh((num_ranks,), program)
    return {name: np.concatenate([rank[name] for rank in ranks], axis=1) for name in ranks[0]}
