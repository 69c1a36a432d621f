"""Which rank does what: the mesh of data, pipeline, tensor, context and expert parallelism.

A mesh has named axes with sizes. The order says which axis varies fastest from one rank to the next: the first one. Ranks that
follow each other share a node, so what talks most comes first. Megatron-LM's order is tp-cp-ep-dp-pp (Narayanan et al. 2021,
arXiv:2104.04473, section 3; Shoeybi et al. 2019, arXiv:1909.08053): tensor groups inside a node, pipeline stages far apart.

Along an axis, a group is the ranks that differ in that axis alone; along several, in those alone. Data-parallel gradients are
reduced over dp and cp together, since context ranks hold the same weights. Experts are laid out on a second mesh over the same
ranks: expert and expert-data parallelism share out what dp, cp and tp span in the first; the pipeline groups stay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure

MEGATRON_ORDER = ("tp", "cp", "ep", "dp", "pp")


class Mesh:
    """Named axes over ranks 0 to size - 1, the first axis varying fastest.

    Attributes:
        sizes: axis -> size, in order.
        size: ranks in all.

    >>> mesh = Mesh({"tp": 8, "pp": 4, "dp": 2}, order=("tp", "dp", "pp"))
    >>> mesh.size, mesh.coordinates(13), mesh.rank({"tp": 5, "dp": 1, "pp": 0})
    (64, {'tp': 5, 'dp': 1, 'pp': 0}, 13)
    >>> mesh.groups("pp")[0]
    [0, 16, 32, 48]
    """

    def __init__(self, sizes: Mapping[str, int], order: Sequence[str] | None = None) -> None:
        """Order the axes; those that `sizes` leaves out have size 1.

        Raises:
            ValueError: an axis named twice, a size below 1, or an axis of `sizes` that the order lacks.
        """
        order = tuple(sizes) if order is None else tuple(order)
        if len(set(order)) < len(order):
            raise ValueError(f"order {'-'.join(order)} names an axis twice")
        if absent := [axis for axis in sizes if axis not in order]:
            raise ValueError(f"order {'-'.join(order)} lacks {', '.join(absent)}")
        if wrong := {axis: size for axis, size in sizes.items() if size < 1}:
            raise ValueError(f"sizes {wrong} are below 1")
        self.sizes = {axis: sizes.get(axis, 1) for axis in order}
        self.size = math.prod(self.sizes.values())

    @property
    def ranks(self) -> np.ndarray:
        """Every rank at its coordinates; one axis per mesh axis, in order."""
        return np.arange(self.size).reshape(*self.sizes.values(), order="F")

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return where a rank is along each axis.

        Raises:
            ValueError: no such rank.
        """
        if not 0 <= rank < self.size:
            raise ValueError(f"rank={rank} is not among {self.size}")
        place = {}
        for axis, size in self.sizes.items():
            rank, place[axis] = divmod(rank, size)
        return place

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """Return the rank at these coordinates; axes left out are 0.

        Raises:
            ValueError: an unknown axis, or a coordinate outside it.
        """
        if absent := [axis for axis in coordinates if axis not in self.sizes]:
            raise ValueError(f"mesh {'-'.join(self.sizes)} lacks {', '.join(absent)}")
        rank, stride = 0, 1
        for axis, size in self.sizes.items():
            at = coordinates.get(axis, 0)
            if not 0 <= at < size:
                raise ValueError(f"{axis}={at} is outside 0..{size - 1}")
            rank, stride = rank + at * stride, stride * size
        return rank

    def groups(self, *axes: str) -> list[list[int]]:
        """Return the groups along these axes: ranks that differ in them alone, ascending; groups by their first rank.

        Raises:
            ValueError: an unknown axis.
        """
        if absent := [axis for axis in axes if axis not in self.sizes]:
            raise ValueError(f"mesh {'-'.join(self.sizes)} lacks {', '.join(absent)}")
        fixed = [axis for axis in self.sizes if axis not in axes]
        along = [place for place, axis in enumerate(self.sizes) if axis in axes]
        size = math.prod(self.sizes[axis] for axis in axes if axis in self.sizes)
        rest = math.prod(self.sizes[axis] for axis in fixed)
        rows = np.moveaxis(self.ranks, along, range(-len(along), 0)).reshape(rest, size)
        return sorted(sorted(row) for row in rows.tolist())

    def group_of(self, rank: int, *axes: str) -> list[int]:
        """Return the ranks that `rank` talks to along these axes, itself included.

        Raises:
            ValueError: no such rank or axis.
        """
        self.coordinates(rank)
        return next(group for group in self.groups(*axes) if rank in group)

    def nodes_spanned(self, ranks_per_node: int, *axes: str) -> int:
        """Return over how many nodes the widest group along these axes reaches.

        Raises:
            ValueError: fewer than one rank a node, or an unknown axis.
        """
        if ranks_per_node < 1:
            raise ValueError(f"ranks_per_node={ranks_per_node} < 1")
        return max(len({rank // ranks_per_node for rank in group}) for group in self.groups(*axes))


def mesh_of(world_size: int, order: Sequence[str] = MEGATRON_ORDER, **sizes: int) -> Mesh:
    """Return the mesh over `world_size` ranks; data parallelism takes what the other axes leave.

    Raises:
        ValueError: the other axes do not divide the ranks, or a `dp` that was given does not fit.

    >>> mesh_of(64, tp=8, pp=4).sizes
    {'tp': 8, 'cp': 1, 'ep': 1, 'dp': 2, 'pp': 4}
    """
    others = math.prod(size for axis, size in sizes.items() if axis != "dp")
    if others < 1 or world_size < 1 or world_size % others:
        named = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if axis != "dp")
        raise ValueError(f"{world_size} ranks are not a multiple of {named or 1}")
    if sizes.get("dp", world_size // others) != world_size // others:
        raise ValueError(f"dp={sizes['dp']}, but {world_size} ranks leave {world_size // others}")
    return Mesh({**sizes, "dp": world_size // others}, order)


def expert_mesh(dense: Mesh, ep: int, etp: int = 1) -> Mesh:
    """Return how experts lie over the ranks of a dense mesh in Megatron's order: axes tp (of experts), ep, dp, pp.

    `ep` experts' shards times `etp` tensor shards take ranks from the dense tp x cp x dp of each pipeline stage.

    Raises:
        ValueError: `ep` x `etp` does not divide the ranks of a stage, or the pipeline axis is not the slowest.

    >>> expert_mesh(mesh_of(16, tp=2, pp=2), ep=4).sizes
    {'tp': 1, 'ep': 4, 'dp': 2, 'pp': 2}
    """
    stages = dense.sizes.get("pp", 1)
    if stages > 1 and list(dense.sizes)[-1] != "pp":
        raise ValueError(f"order {'-'.join(dense.sizes)}: pp must vary slowest to hold experts on a stage's ranks")
    per_stage = dense.size // stages
    if ep < 1 or etp < 1 or per_stage % (ep * etp):
        raise ValueError(f"ep={ep} x etp={etp} does not divide the {per_stage} ranks of a stage")
    return Mesh({"tp": etp, "ep": ep, "dp": per_stage // (ep * etp), "pp": stages})


def mesh_groups(*, sizes: Mapping[str, int], order: Sequence[str], axes: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
    """Return the groups along each set of axes, named by the axes joined with "-".

    Raises:
        ValueError: what `Mesh` and `Mesh.groups` refuse.

    >>> mesh_groups(sizes={"tp": 2, "dp": 2}, order=["tp", "dp"], axes=[["tp"], ["dp"]])
    {'tp': [[0, 1], [2, 3]], 'dp': [[0, 2], [1, 3]]}
    """
    mesh = Mesh(sizes, order)
    return {"-".join(chosen): mesh.groups(*chosen) for chosen in axes}


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw sizes from 1 to 3 for some axes in any order, and every set of up to two axes."""
    order = [str(axis) for axis in rng.permutation(MEGATRON_ORDER)[: rng.integers(1, 6)]]
    return {
        "sizes": {axis: int(rng.integers(1, 4)) for axis in order},
        "order": order,
        "axes": [[axis] for axis in order] + [list(pair) for pair in itertools.combinations(order, 2)],
    }


MESH = Procedure(reference=mesh_groups, examples=examples, paper="arXiv:2104.04473")
