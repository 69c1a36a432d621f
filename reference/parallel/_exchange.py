"""Collectives on a mesh, by rings and trees of `Traffic.send`: what the layers of this family are written with.

`parts` holds one array per rank. `groups` names the ranks that talk to each other (rows or columns of a mesh); groups are of
equal size and go on at the same time, so their rounds count once. Without `groups` all ranks are one group. p is the size of
a group and n the bytes of one rank's array. Rings: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llmlab.reference.parallel._traffic import Traffic

Parts = list[np.ndarray]
Groups = Sequence[Sequence[int]]


def lines(shape: Sequence[int], axis: int) -> list[list[int]]:
    """Ranks of a row-major mesh that differ along one axis only.

    >>> lines((2, 2), 0), lines((2, 2), 1)
    ([[0, 2], [1, 3]], [[0, 1], [2, 3]])
    """
    ranks = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return np.moveaxis(ranks, axis, -1).reshape(-1, shape[axis]).tolist()


def all_gather(parts: Parts, traffic: Traffic, *, axis: int = 0, groups: Groups | None = None) -> Parts:
    """Give every rank the parts of its group side by side; each rank sends (p - 1) n bytes in p - 1 rounds."""
    groups = [range(len(parts))] if groups is None else groups
    held = {rank: {place: parts[rank]} for group in groups for place, rank in enumerate(group)}
    size = len(groups[0])
    for step in range(size - 1):
        for group in groups:
            for place, rank in enumerate(group):
                block = (place - step) % size
                to = group[(place + 1) % size]
                held[to][block] = traffic.send(held[rank][block], rank, to)
        traffic.end_round()
    return [np.concatenate([held[rank][place] for place in range(size)], axis) for rank in range(len(parts))]


def reduce_scatter(parts: Parts, traffic: Traffic, *, axis: int = 0, groups: Groups | None = None) -> Parts:
    """Leave each rank its piece of the sum over its group; together the p ranks send (p - 1) n bytes in p - 1 rounds."""
    groups = [range(len(parts))] if groups is None else groups
    size = len(groups[0])
    pieces = [np.array_split(part, size, axis) for part in parts]
    for step in range(size - 1):
        arriving = []
        for group in groups:
            for place, rank in enumerate(group):
                block = (place - step - 1) % size
                to = group[(place + 1) % size]
                arriving.append((to, block, traffic.send(pieces[rank][block], rank, to)))
        for rank, block, array in arriving:
            pieces[rank][block] = pieces[rank][block] + array
        traffic.end_round()
    return [pieces[rank][place] for rank, place in sorted((rank, i) for group in groups for i, rank in enumerate(group))]


def all_reduce(parts: Parts, traffic: Traffic, *, groups: Groups | None = None) -> Parts:
    """Give every rank the sum over its group: a reduce-scatter and an all-gather, 2 (p - 1) n bytes in all."""
    flat = reduce_scatter([part.reshape(-1) for part in parts], traffic, groups=groups)
    return [whole.reshape(part.shape) for whole, part in zip(all_gather(flat, traffic, groups=groups), parts)]


def broadcast(parts: Parts, traffic: Traffic, *, root: int, groups: Groups) -> Parts:
    """Give every rank the array of its group's member `root` by a binomial tree: (p - 1) n bytes, ceil(log2 p) rounds."""
    held = {group[root]: parts[group[root]] for group in groups}
    for source, destination in _tree(len(groups[0]), root, traffic):
        for group in groups:
            held[group[destination]] = traffic.send(held[group[source]], group[source], group[destination])
    return [held[rank] for rank in range(len(parts))]


def reduce(parts: Parts, traffic: Traffic, *, root: int, groups: Groups) -> Parts:
    """Leave member `root` of each group the sum, by the same tree read backwards; the others get their partial sums."""
    held = list(parts)
    for source, destination in reversed(list(_tree(len(groups[0]), root, traffic))):
        for group in groups:
            arrived = traffic.send(held[group[destination]], group[destination], group[source])
            held[group[source]] = held[group[source]] + arrived
    return held


def _tree(size: int, root: int, traffic: Traffic) -> list[tuple[int, int]]:
    """Edges from the root outwards, in rounds that double the ranks reached; counts the rounds."""
    edges = []
    reached = 1
    while reached < size:
        edges += [((i + root) % size, (i + reached + root) % size) for i in range(min(reached, size - reached))]
        reached *= 2
        traffic.end_round()
    return edges


def all_to_all(
    blocks: Sequence[Sequence[np.ndarray]], traffic: Traffic, *, groups: Groups | None = None
) -> list[list[np.ndarray]]:
    """Turn `blocks[source][destination]` into `[destination][source]`, places counted within the group; p - 1 rounds."""
    groups = [range(len(blocks))] if groups is None else groups
    size = len(groups[0])
    received = [[mine[0]] * size for mine in blocks]
    for distance in range(size):
        for group in groups:
            for place, rank in enumerate(group):
                to = (place + distance) % size
                received[group[to]][place] = traffic.send(blocks[rank][to], rank, group[to])
        traffic.end_round(min(distance, 1))  # what a rank keeps takes no round
    return received


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
