"""Megatron's block over torch.distributed: heads and feed-forward columns cut over the ranks, autograd through f and g."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Copied, Peers, Summed, grads, leaf, on_mesh
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._exchange import split
from llmlab.reference.parallel.tensor_1d import TENSOR_1D


def attention_share(x_BTD: Tensor, qkv_3DNH: Tensor, proj_NHD: Tensor) -> Tensor:
    q, k, v = torch.einsum("btd,cdnh->cbnth", x_BTD, qkv_3DNH)
    heads_BNTH = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return torch.einsum("bnth,nhd->btd", heads_BNTH, proj_NHD)


def mlp_share(x_BTD: Tensor, up_DF: Tensor, up_bias_F: Tensor, down_FD: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x_BTD @ up_DF + up_bias_F) @ down_FD


@twin(TENSOR_1D, backend="torch", dtypes=("float64",))
def tensor_1d(
    *,
    x_BTD: np.ndarray,
    qkv_3DNH: np.ndarray,
    proj_NHD: np.ndarray,
    up_DF: np.ndarray,
    up_bias_F: np.ndarray,
    down_FD: np.ndarray,
    down_bias_D: np.ndarray,
    dout_BTD: np.ndarray,
    num_ranks: int,
    traffic: object = None,
) -> dict[str, np.ndarray]:
    cut = {
        "qkv": split(qkv_3DNH, num_ranks, 2, "heads"),
        "proj": split(proj_NHD, num_ranks, 0, "heads"),
        "up": split(up_DF, num_ranks, 1, "feed-forward width"),
        "up_bias": split(up_bias_F, num_ranks, 0, "feed-forward width"),
        "down": split(down_FD, num_ranks, 0, "feed-forward width"),
    }

    def program(peers: Peers) -> dict[str, Any]:
        x, bias = leaf(x_BTD), leaf(down_bias_D)
        own = {name: leaf(parts[peers.rank]) for name, parts in cut.items()}
        middle = x + Summed.apply(attention_share(Copied.apply(x, peers), own["qkv"], own["proj"]), peers)
        fed = mlp_share(Copied.apply(middle, peers), own["up"], own["up_bias"], own["down"])
        out = middle + Summed.apply(fed, peers) + bias
        out.backward(torch.from_numpy(dout_BTD))
        return {"out": out.detach().numpy(), **grads({"x": x, "down_bias": bias, **own})}

    ranks = on_mesh((num_ranks,), program)
    axes = {"dqkv": 2, "dproj": 0, "dup": 1, "dup_bias": 0, "ddown": 0}
    whole = {name: np.concatenate([rank[name] for rank in ranks], axis) for name, axis in axes.items()}
    return {**{name: ranks[0][name] for name in ("out", "dx", "ddown_bias")}, **whole}
