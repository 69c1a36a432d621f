"""Groups by torch's DeviceMesh, and by asking of every pair of ranks whether they differ in the named axes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.mesh import MESH


@oracle(MESH, library="torch.distributed.device_mesh.DeviceMesh", needs=("torch",))
def device_mesh(*, sizes: Mapping[str, int], order: Sequence[str], axes: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    names = tuple(reversed(order))  # torch's last dimension varies fastest
    shape = [sizes[axis] for axis in names]
    world = int(np.prod(shape))
    found: dict[str, list[list[int]]] = {}
    for chosen in axes:
        groups = set()
        for rank in range(world):
            whole = DeviceMesh("cpu", torch.arange(world).reshape(shape), mesh_dim_names=names, _init_backend=False, _rank=rank)
            whole._dim_group_names = []  # no process groups: slicing is all that is asked
            kept = tuple(name for name in names if name in chosen)
            groups.add(tuple(sorted(whole[kept].mesh.ravel().tolist())))
        found["-".join(chosen)] = sorted(map(list, groups))
    return found


@oracle(MESH, library="exact enumeration")
def by_pairs(*, sizes: Mapping[str, int], order: Sequence[str], axes: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
    places = [place[::-1] for place in np.ndindex(*[sizes[axis] for axis in reversed(order)])]
    found = {}
    for chosen in axes:
        free = {order.index(axis) for axis in chosen}
        together = [
            [
                other
                for other, there in enumerate(places)
                if all(a == b for k, (a, b) in enumerate(zip(here, there)) if k not in free)
            ]
            for here in places
        ]
        found["-".join(chosen)] = sorted(map(list, set(map(tuple, together))))
    return found
