"""Groups by asking of every pair of ranks whether they differ in the named axes alone, and as torch's DeviceMesh forms them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.parallel.mesh import MESH


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


def device_mesh_groups(sizes: Mapping[str, int], order: Sequence[str]) -> dict[str, list[int]]:
    """Return this rank's group along each axis, as torch's DeviceMesh forms it over the default group."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    names = tuple(reversed(order))  # torch's last dimension varies fastest
    mesh = init_device_mesh("cpu", tuple(sizes[axis] for axis in names), mesh_dim_names=names)
    return {axis: sorted(dist.get_process_group_ranks(mesh.get_group(axis))) for axis in order}
