"""Sequence-parallel block over torch.distributed: all-gather into the matrices, reduce-scatter out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.parallel._peers_torch import Copied, Gathered, Peers, Scattered, grads, leaf, on_mesh
from llmlab.kernels.parallel.tensor_1d_torch import attention_share, mlp_share
from llmlab.kernels.twin import twin
from llmlab.reference.parallel._exchange import split
from llmlab.reference.parallel.sequence import SEQUENCE

CUT = {"qkv_3DNH": 2, "proj_NHD": 0, "up_DF": 1, "up_bias_F": 0, "down_FD": 0, "x_BTD": 1}
WHOLE = ("norm_weight_1_D", "norm_bias_1_D", "norm_weight_2_D", "norm_bias_2_D", "down_bias_D")


@twin(SEQUENCE, backend="torch", dtypes=("float64",))
def sequence(
    *, keep_fraction: float, num_ranks: int, store_gathered: bool = True, traffic: object = None, **arrays: np.ndarray
) -> dict[str, np.ndarray]:
    parts = {name: split(arrays[name], num_ranks, axis, name) for name, axis in CUT.items()}
    shards = {name: split(arrays[name], num_ranks, 1, name) for name in ("keep_attention_BTD", "keep_mlp_BTD", "dout_BTD")}

    def program(peers: Peers) -> dict[str, Any]:
        own = {name.rpartition("_")[0]: leaf(part[peers.rank]) for name, part in parts.items()}
        own |= {name.rpartition("_")[0]: leaf(arrays[name]) for name in WHOLE}

        def norm(x: Tensor, number: int) -> Tensor:
            weight, bias = (Copied.apply(own[f"norm_{kind}_{number}"], peers) for kind in ("weight", "bias"))
            return torch.nn.functional.layer_norm(x, weight.shape, weight, bias)

        def kept(y: Tensor, name: str) -> Tensor:
            return y * (torch.from_numpy(shards[f"keep_{name}_BTD"][peers.rank]).to(y.dtype) / keep_fraction)

        def within(layer: Any, x: Tensor, *weights: Tensor) -> Tensor:
            return Scattered.apply(layer(Gathered.apply(x, peers, 1), *weights), peers, 1)

        x = own["x"]
        middle = x + kept(within(attention_share, norm(x, 1), own["qkv"], own["proj"]), "attention")
        fed = within(mlp_share, norm(middle, 2), own["up"], own["up_bias"], own["down"])
        out = middle + kept(fed + Copied.apply(own["down_bias"], peers), "mlp")
        out.backward(torch.from_numpy(np.ascontiguousarray(shards["dout_BTD"][peers.rank])))
        return {"out": out.detach().numpy(), **grads(own)}

    ranks = on_mesh((num_ranks,), program)
    axes = {"out": 1, **{f"d{name.rpartition('_')[0]}": axis for name, axis in CUT.items()}}
    whole = {name: np.concatenate([rank[name] for rank in ranks], axis) for name, axis in axes.items()}
    return {**whole, **{f"d{name[:-2]}": ranks[0][f"d{name[:-2]}"] for name in WHOLE}}
