"""A linear layer on a cube over torch.distributed: gathers along two edges, a reduce-scatter along the third."""

from __future__ import annotations

import numpy as np
import torch

from llmlab.kernels.parallel._peers_torch import Gathered, Peers, Scattered, grads, leaf, on_mesh
from llmlab.kernels.twin import twin
from llmlab.reference.parallel.tensor_3d import TENSOR_3D, collected, scattered


@twin(TENSOR_3D, backend="torch", dtypes=("float64",))
def tensor_3d(
    *, x_MK: np.ndarray, weight_KN: np.ndarray, dout_MN: np.ndarray, side: int, traffic: object = None
) -> dict[str, np.ndarray]:
    i, j, k = range(3)
    layout = {"x": (i, j, k), "weight": (k, i, j), "out": (i, k, j)}
    pieces = {
        name: scattered(whole, side, *layout[name]) for name, whole in (("x", x_MK), ("weight", weight_KN), ("out", dout_MN))
    }

    def program(along_i: Peers, along_j: Peers, along_k: Peers) -> dict[str, np.ndarray]:
        rank = (along_i.rank * side + along_j.rank) * side + along_k.rank
        x, weight = leaf(pieces["x"][rank]), leaf(pieces["weight"][rank])
        product = Gathered.apply(x, along_j, 0) @ Gathered.apply(weight, along_i, 0)
        out = Scattered.apply(product, along_k, 0)
        out.backward(torch.tensor(pieces["out"][rank]))
        return {"out": out.detach().numpy(), **grads({"x": x, "weight": weight})}

    ranks = on_mesh((side,) * 3, program)
    where = {"out": "out", "dx": "x", "dweight": "weight"}
    return {name: collected([rank[name] for rank in ranks], side, *layout[of]) for name, of in where.items()}
