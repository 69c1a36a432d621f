"""Collectives on a mesh, along axes of arrays: what the layers of this family are written with.

`parts` holds one array per rank. `groups` names the ranks that talk to each other (rows or columns of a mesh); groups are of
equal size and go on at the same time, so their rounds count once. Without `groups` all ranks are one group. p is the size of
a group and n the bytes of one rank's array. The algorithms are those of parallel.collectives: rings, binomial trees and the
pairwise exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llmlab.reference.parallel._group import Group, at_the_same_time
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.collectives import (
    pairwise_all_to_all,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_broadcast,
    tree_reduce,
)

Parts = list[np.ndarray]
Groups = Sequence[Sequence[int]]


def lines(shape: Sequence[int], axis: int) -> list[list[int]]:
    """Ranks of a row-major mesh that differ along one axis only.

    >>> lines((2, 2), 0), lines((2, 2), 1)
    ([[0, 2], [1, 3]], [[0, 1], [2, 3]])
    """
    ranks = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return np.moveaxis(ranks, axis, -1).reshape(-1, shape[axis]).tolist()


def in_groups(
    algorithm: Callable[[list[Any], Group], Sequence[Any]], held: Sequence[Any], traffic: Traffic, groups: Groups | None
) -> list[Any]:
    """Run an algorithm in every group at the same time; return what it gives each rank."""
    results: list[Any] = list(held)

    def work(group: Group, ranks: Sequence[int]) -> None:
        for rank, result in zip(ranks, algorithm([held[rank] for rank in ranks], group), strict=True):
            results[rank] = result

    at_the_same_time(traffic, [range(len(held))] if groups is None else groups, work)
    return results


def all_gather(parts: Parts, traffic: Traffic, *, axis: int = 0, groups: Groups | None = None) -> Parts:
    """Give every rank the parts of its group side by side; each rank sends (p - 1) n bytes in p - 1 rounds."""
    size = len(parts) if groups is None else len(groups[0])
    moved = [np.moveaxis(part, axis, 0) for part in parts]
    whole = in_groups(ring_all_gather, moved, traffic, groups)
    rows, *rest = moved[0].shape
    return [np.moveaxis(flat.reshape([size * rows, *rest]), 0, axis) for flat in whole]


def reduce_scatter(parts: Parts, traffic: Traffic, *, axis: int = 0, groups: Groups | None = None) -> Parts:
    """Leave each rank its piece of the sum over its group; together the p ranks send (p - 1) n bytes in p - 1 rounds."""
    size = len(parts) if groups is None else len(groups[0])
    moved = [np.moveaxis(part, axis, 0) for part in parts]
    pieces = in_groups(ring_reduce_scatter, moved, traffic, groups)
    rows, *rest = moved[0].shape
    return [np.moveaxis(flat.reshape([rows // size, *rest]), 0, axis) for flat in pieces]


def all_reduce(parts: Parts, traffic: Traffic, *, groups: Groups | None = None) -> Parts:
    """Give every rank the sum over its group: a reduce-scatter and an all-gather, 2 (p - 1) n bytes in all."""
    return [flat.reshape(part.shape) for flat, part in zip(in_groups(ring_all_reduce, parts, traffic, groups), parts)]


def broadcast(parts: Parts, traffic: Traffic, *, root: int, groups: Groups) -> Parts:
    """Give every rank the array of its group's member `root` by a binomial tree: (p - 1) n bytes, ceil(log2 p) rounds."""
    whole = in_groups(lambda held, group: tree_broadcast(held, group, root), parts, traffic, groups)
    return [flat.reshape(part.shape) for flat, part in zip(whole, parts)]


def reduce(parts: Parts, traffic: Traffic, *, root: int, groups: Groups) -> Parts:
    """Leave member `root` of each group the sum, by the same tree read backwards; the others keep what they had."""

    def to_root(held: Parts, group: Group) -> Parts:
        total = tree_reduce(held, group, root).reshape(held[root].shape)
        return [*held[:root], total, *held[root + 1 :]]

    return in_groups(to_root, parts, traffic, groups)


def all_to_all(
    blocks: Sequence[Sequence[np.ndarray]], traffic: Traffic, *, groups: Groups | None = None
) -> list[list[np.ndarray]]:
    """Turn `blocks[source][destination]` into `[destination][source]`, places counted within the group; p - 1 rounds."""
    return in_groups(pairwise_all_to_all, blocks, traffic, groups)


def split(array: np.ndarray, num_ranks: int, axis: int, name: str) -> Parts:
    """Cut an array into equal parts along an axis.

    Raises:
        ValueError: fewer than one rank, or the axis does not divide.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks={num_ranks} < 1")
    if array.shape[axis] % num_ranks:
        raise ValueError(f"{name}={array.shape[axis]} is not a multiple of {num_ranks} ranks")
    return np.split(array, num_ranks, axis)


def same_to_rounding(expected: object, actual: object) -> bool:
    """Compare nested results; floats in float64 may differ by the order of sums: 4096 ulp of the largest value expected.

    Sums of up to some thousand terms, in another order, differ by less; an error that matters is far above. The largest value
    is that of the whole result: what cancels to 0 in one order of sums is rounding in another.
    """
    left, right = list(_flat("", expected)), list(_flat("", actual))
    if [(path, array.shape) for path, array in left] != [(path, array.shape) for path, array in right]:
        return False
    largest = max((np.abs(array).max(initial=0.0) for _, array in left if array.dtype.kind == "f"), default=0.0)
    allowed = 4096 * np.finfo(np.float64).eps * largest
    return all(
        bool(np.all(np.abs(one - other) <= allowed)) if one.dtype.kind == "f" else np.array_equal(one, other)
        for (_, one), (_, other) in zip(left, right)
    )


def _flat(path: str, value: object) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flat(f"{path}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _flat(f"{path}[{place}]", part)
    else:
        yield path, np.asarray(value)
