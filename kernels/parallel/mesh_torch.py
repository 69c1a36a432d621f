"""Groups as torch lays them out: one tensor of ranks, its axes moved and flattened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from llmlab.kernels.twin import twin
from llmlab.reference.parallel.mesh import MESH, Mesh


@twin(MESH, backend="torch", dtypes=("float64",))
def mesh_groups(*, sizes: Mapping[str, int], order: Sequence[str], axes: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
    mesh = Mesh(sizes, order)  # refuses what cannot be
    names = list(reversed(mesh.sizes))
    ranks = torch.arange(mesh.size).reshape([mesh.sizes[axis] for axis in names])
    found = {}
    for chosen in axes:
        along = [names.index(axis) for axis in chosen]
        rest = [place for place in range(len(names)) if place not in along]
        width = int(torch.tensor([ranks.shape[place] for place in along]).prod())
        rows = ranks.permute(rest + along).reshape(-1, width).sort(dim=1).values
        found["-".join(chosen)] = rows[rows[:, 0].argsort()].tolist()
    return found
