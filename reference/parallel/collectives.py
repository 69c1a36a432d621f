"""Collective communication, algorithm by algorithm, on a list that holds one array per rank.

n ranks, each with an array of `size` bytes. Every algorithm moves data through `send` alone, so that `Traffic` counts what it
does. A rank sends and receives at most one message in a round.

| algorithm | operation | rounds | bytes a rank sends at most |
|---|---|---|---|
| ring | reduce-scatter, all-gather | n - 1 | (n-1)/n size |
| ring | all-reduce | 2 (n-1) | 2 (n-1)/n size |
| halving_doubling | reduce-scatter, all-gather | log2 n | (n-1)/n size |
| halving_doubling | all-reduce | 2 log2 n (2 more where n is no power of two) | 2 (n-1)/n size (up to 3 size) |
| tree | broadcast | ceil(log2 n) | ceil(log2 n) size |
| tree | all-reduce | 2 ceil(log2 n) | ceil(log2 n) size |
| double_binary_tree | all-reduce | at least 4 segments from 4 ranks on; log n more to fill | 2 size |
| hierarchical | all-reduce, g ranks a node, m nodes | 2 (g-1) + 2 (m-1) | 2 (g-1)/g size + 2 (m-1)/m size/g |
| ring | broadcast (scatter, then all-gather) | 2 (n-1) | 2 (n-1)/n size |
| pairwise | all-to-all | n - 1 | (n-1)/n size |
| bruck | all-to-all | ceil(log2 n) | about size/2 ceil(log2 n) |

Ring and lower bound: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002. Halving and doubling, trees, all-to-all: Thakur,
Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521. Two trees: Sanders, Speck and Träff 2009,
doi:10.1016/j.parco.2009.09.001, in the form NCCL has since 2.4. Arrays are cut as `numpy.array_split` cuts them: where n does
not divide the elements, the first chunks have one more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmlab.reference.op import Cost, Dims, Procedure
from llmlab.reference.parallel._group import Group, at_the_same_time
from llmlab.reference.parallel._traffic import Traffic, same_shapes


class Network(Protocol):
    """What an algorithm needs: `Traffic` and `Group` both have it."""

    def send(self, array: np.ndarray, source: int, destination: int) -> np.ndarray:
        """Deliver a copy."""

    def end_round(self, rounds: int = 1) -> None:
        """Close a round."""


def split(array: np.ndarray, num_chunks: int) -> list[np.ndarray]:
    """Cut the flattened array into chunks whose lengths differ by at most one."""
    return np.array_split(array.ravel(), num_chunks)


def power_of_two_below(number: int) -> int:
    """Return the largest power of two that is not above `number`.

    >>> [power_of_two_below(number) for number in (1, 2, 3, 8, 9)]
    [1, 2, 2, 8, 8]
    """
    return 1 << (number.bit_length() - 1)


# Rings.


def ring_reduce_scatter(parts: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return to rank r chunk r of the sum; each chunk travels once around the ring, growing by one part per hop."""
    n = len(parts)
    held = [split(part, n) for part in parts]
    for step in range(1, n):
        chunk_of = [(rank - step) % n for rank in range(n)]
        arriving = [network.send(held[rank][chunk_of[rank]], rank, (rank + 1) % n) for rank in range(n)]
        for rank in range(n):
            chunk = chunk_of[rank - 1]
            held[rank][chunk] = held[rank][chunk] + arriving[rank - 1]
        network.end_round()
    return [held[rank][rank].copy() for rank in range(n)]


def ring_all_gather(shards: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return to every rank all shards in rank order; each passes on what it received last."""
    n = len(shards)
    held: list[list[np.ndarray]] = [[shards[rank]] * n for rank in range(n)]
    for step in range(n - 1):
        arriving = [network.send(held[rank][(rank - step) % n], rank, (rank + 1) % n) for rank in range(n)]
        for rank in range(n):
            held[rank][(rank - 1 - step) % n] = arriving[rank - 1]
        network.end_round()
    return [np.concatenate([chunk.ravel() for chunk in chunks]) for chunks in held]


def ring_all_reduce(parts: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return the sum to every rank: reduce-scatter, then all-gather."""
    return ring_all_gather(ring_reduce_scatter(parts, network), network)


def ring_broadcast(parts: Sequence[np.ndarray], network: Network, root: int = 0) -> list[np.ndarray]:
    """Return the root's array to every rank: the root deals out chunks, the ring gathers them."""
    n = len(parts)
    chunks = split(parts[root], n)
    shards = []
    for rank in range(n):
        shards.append(network.send(chunks[rank], root, rank))
    network.end_round(n - 1)  # the root sends one message a round
    return ring_all_gather(shards, network)


# Recursive halving and doubling.


def halving_reduce_scatter(parts: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return to rank r chunk r of the sum; partners at n/2, n/4, ..., 1 swap the half that the other keeps.

    Raises:
        ValueError: the number of ranks is no power of two.
    """
    n = len(parts)
    _need_power_of_two(n)
    held = [dict(enumerate(split(part, n))) for part in parts]
    distance = n // 2
    while distance:
        arriving: list[dict[int, np.ndarray]] = [{} for _ in range(n)]
        for rank in range(n):
            partner = rank ^ distance
            theirs = [chunk for chunk in held[rank] if chunk & distance == partner & distance]
            sizes = np.cumsum([held[rank][chunk].size for chunk in theirs])[:-1]
            message = network.send(np.concatenate([held[rank].pop(chunk) for chunk in theirs]), rank, partner)
            arriving[partner] = dict(zip(theirs, np.split(message, sizes)))
        for rank in range(n):
            for chunk, received in arriving[rank].items():
                held[rank][chunk] = held[rank][chunk] + received
        network.end_round()
        distance //= 2
    return [held[rank][rank].copy() for rank in range(n)]


def doubling_all_gather(shards: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return to every rank all shards in rank order; partners at 1, 2, ..., n/2 swap everything they have.

    Raises:
        ValueError: the number of ranks is no power of two.
    """
    n = len(shards)
    _need_power_of_two(n)
    held = [shard.ravel() for shard in shards]  # consecutive shards, so one array
    distance = 1
    while distance < n:
        arriving = [network.send(held[rank], rank, rank ^ distance) for rank in range(n)]
        for rank in range(n):
            other = arriving[rank ^ distance]
            held[rank] = np.concatenate([other, held[rank]] if rank & distance else [held[rank], other])
        network.end_round()
        distance *= 2
    return [whole.copy() for whole in held]


def halving_doubling_all_reduce(parts: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return the sum to every rank; ranks beyond a power of two give their array to a neighbour first and get the sum after."""
    n = len(parts)
    power = power_of_two_below(n)
    extra = n - power
    kept = [2 * pair for pair in range(extra)] + list(range(2 * extra, n))
    sums = [part.ravel() for part in parts]
    for pair in range(extra):
        sums[2 * pair] = sums[2 * pair] + network.send(sums[2 * pair + 1], 2 * pair + 1, 2 * pair)
    network.end_round(int(extra > 0))
    inner = _Renumbered(network, kept)
    shards = halving_reduce_scatter([sums[rank] for rank in kept], inner)
    for rank, total in zip(kept, doubling_all_gather(shards, inner)):
        sums[rank] = total
    for pair in range(extra):
        sums[2 * pair + 1] = network.send(sums[2 * pair], 2 * pair, 2 * pair + 1)
    network.end_round(int(extra > 0))
    return sums


class _Renumbered:
    """Some ranks of a network under the numbers 0, 1, ..."""

    def __init__(self, network: Network, ranks: Sequence[int]) -> None:
        self.network, self.ranks = network, ranks

    def send(self, array: np.ndarray, source: int, destination: int) -> np.ndarray:
        return self.network.send(array, self.ranks[source], self.ranks[destination])

    def end_round(self, rounds: int = 1) -> None:
        self.network.end_round(rounds)


def _need_power_of_two(n: int) -> None:
    if n & (n - 1):
        raise ValueError(f"{n} ranks: recursive halving and doubling need a power of two")


# Trees.


def tree_broadcast(parts: Sequence[np.ndarray], network: Network, root: int = 0) -> list[np.ndarray]:
    """Return the root's array to every rank along a binomial tree: who has it doubles each round."""
    n = len(parts)
    held: list[np.ndarray | None] = [None] * n
    held[root] = parts[root].ravel().copy()
    distance = 1
    while distance < n:
        for place in range(min(distance, n - distance)):
            source, destination = (root + place) % n, (root + place + distance) % n
            whole = held[source]
            assert whole is not None
            held[destination] = network.send(whole, source, destination)
        network.end_round()
        distance *= 2
    return [whole for whole in held if whole is not None]


def tree_reduce(parts: Sequence[np.ndarray], network: Network, root: int = 0) -> np.ndarray:
    """Return the sum, which the root holds: the binomial tree of the broadcast, run backwards."""
    n = len(parts)
    sums = [part.ravel() for part in parts]
    distance = 1 << max(0, (n - 1).bit_length() - 1)
    while distance and n > 1:
        for place in range(min(distance, n - distance)):
            destination, source = (root + place) % n, (root + place + distance) % n
            sums[destination] = sums[destination] + network.send(sums[source], source, destination)
        network.end_round()
        distance //= 2
    return sums[root]


def tree_all_reduce(parts: Sequence[np.ndarray], network: Network) -> list[np.ndarray]:
    """Return the sum to every rank: reduce to rank 0, then broadcast."""
    total = tree_reduce(parts, network)
    return tree_broadcast([total] * len(parts), network)


def binary_tree(n: int) -> list[int]:
    """Return each rank's parent in the in-order binary tree (-1 for the root, rank 0); odd ranks are leaves.

    >>> binary_tree(8)
    [-1, 2, 4, 2, 0, 6, 4, 6]
    """
    parents = [-1]
    for rank in range(1, n):
        lowest = rank & -rank
        above = (rank ^ lowest) | (lowest << 1)
        parents.append(above if above < n else rank ^ lowest)
    return parents


def double_tree(n: int) -> tuple[list[int], list[int]]:
    """Return two trees over the same ranks; leaves of one are inner in the other (all but at most one rank).

    The second is the first mirrored where n is even, shifted by one where it is odd.

    >>> double_tree(4)
    ([-1, 2, 0, 2], [1, 3, 1, -1])
    """
    first = binary_tree(n)
    place = [n - 1 - rank if n % 2 == 0 else (rank - 1) % n for rank in range(n)]
    rank_at = {at: rank for rank, at in enumerate(place)}
    return first, [rank_at[first[at]] if first[at] >= 0 else -1 for at in place]


def double_binary_tree_all_reduce(parts: Sequence[np.ndarray], network: Network, num_segments: int = 4) -> list[np.ndarray]:
    """Return the sum to every rank: each half of the array goes up and down its own tree, in segments that follow each other.

    Every rank sends the segment that is ready first, up before down, one message a round.

    Raises:
        ValueError: fewer than one segment.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments={num_segments} < 1")
    n = len(parts)
    halves = [split(part, 2) for part in parts]
    trees = double_tree(n)
    sums = {
        (rank, tree, segment): piece
        for rank in range(n)
        for tree in (0, 1)
        for segment, piece in enumerate(split(halves[rank][tree], num_segments))
    }
    children = [[[rank for rank in range(n) if tree[rank] == above] for above in range(n)] for tree in trees]
    missing = {key: len(children[key[1]][key[0]]) for key in sums}
    waiting: list[deque[tuple[int, int, int, bool]]] = [deque() for _ in range(n)]  # (tree, segment, destination, going up)

    def summed(rank: int, tree: int, segment: int) -> None:
        if trees[tree][rank] >= 0:
            waiting[rank].append((tree, segment, trees[tree][rank], True))
        else:
            complete(rank, tree, segment)

    def complete(rank: int, tree: int, segment: int) -> None:
        waiting[rank].extend((tree, segment, child, False) for child in children[tree][rank])

    for segment in range(num_segments):
        for rank, tree in [(rank, tree) for rank in range(n) for tree in (0, 1)]:
            if not missing[rank, tree, segment]:
                summed(rank, tree, segment)
    while any(waiting):
        busy: set[int] = set()
        delivered = []
        for rank in range(n):
            for job in sorted(waiting[rank], key=lambda job: not job[3]):
                if job[2] not in busy:
                    busy.add(job[2])
                    waiting[rank].remove(job)
                    delivered.append((rank, job, network.send(sums[rank, job[0], job[1]], rank, job[2])))
                    break
        for _, (tree, segment, destination, going_up), received in delivered:
            key = destination, tree, segment
            if going_up:
                sums[key] = sums[key] + received
                missing[key] -= 1
                if not missing[key]:
                    summed(*key)
            else:
                sums[key] = received
                complete(*key)
        network.end_round()
    return [
        np.concatenate([sums[rank, tree, segment] for tree in (0, 1) for segment in range(num_segments)]) for rank in range(n)
    ]


# Two levels: fast links inside a node of g ranks, slow ones between nodes. Rank = node * g + place.


def nodes_of(num_ranks: int, ranks_per_node: int) -> list[list[int]]:
    """Return the ranks of each node.

    Raises:
        ValueError: `ranks_per_node` does not divide the ranks.
    """
    if ranks_per_node < 1 or num_ranks % ranks_per_node:
        raise ValueError(f"ranks_per_node={ranks_per_node} does not divide {num_ranks} ranks")
    return [list(range(first, first + ranks_per_node)) for first in range(0, num_ranks, ranks_per_node)]


def hierarchical_all_reduce(parts: Sequence[np.ndarray], traffic: Traffic, ranks_per_node: int) -> list[np.ndarray]:
    """Return the sum to every rank: reduce-scatter in each node, all-reduce of a g-th between nodes, all-gather inside."""
    nodes = nodes_of(len(parts), ranks_per_node)
    held = [part.ravel() for part in parts]

    def inside(algorithm: Callable[..., list[np.ndarray]]) -> Callable[[Group, Sequence[int]], None]:
        def work(group: Group, ranks: Sequence[int]) -> None:
            for rank, result in zip(ranks, algorithm([held[rank] for rank in ranks], group)):
                held[rank] = result

        return work

    at_the_same_time(traffic, nodes, inside(ring_reduce_scatter))
    at_the_same_time(traffic, [list(rail) for rail in zip(*nodes)], inside(ring_all_reduce))
    at_the_same_time(traffic, nodes, inside(ring_all_gather))
    return held


def hierarchical_broadcast(
    parts: Sequence[np.ndarray], traffic: Traffic, ranks_per_node: int, root: int = 0
) -> list[np.ndarray]:
    """Return the root's array to every rank: a tree over one rank of each node, then a tree in each node."""
    nodes = nodes_of(len(parts), ranks_per_node)
    held = [part.ravel() for part in parts]
    node, place = divmod(root, ranks_per_node)

    def spread(first: int) -> Callable[[Group, Sequence[int]], None]:
        def work(group: Group, ranks: Sequence[int]) -> None:
            for rank, result in zip(ranks, tree_broadcast([held[rank] for rank in ranks], group, first)):
                held[rank] = result

        return work

    at_the_same_time(traffic, [[ranks[place] for ranks in nodes]], spread(node))
    at_the_same_time(traffic, nodes, spread(place))
    return held


# All-to-all: `blocks[source][destination]`.


def pairwise_all_to_all(blocks: Sequence[Sequence[np.ndarray]], network: Network) -> list[list[np.ndarray]]:
    """Return to each rank what every rank had for it; in round k rank r sends to r + k."""
    n = len(blocks)
    received: list[list[np.ndarray]] = [[blocks[rank][rank].copy()] * n for rank in range(n)]
    for step in range(1, n):
        for rank in range(n):
            destination = (rank + step) % n
            received[destination][rank] = network.send(blocks[rank][destination], rank, destination)
        network.end_round()
    return received


def bruck_all_to_all(blocks: Sequence[Sequence[np.ndarray]], network: Network) -> list[list[np.ndarray]]:
    """Return to each rank what every rank had for it; blocks with bit k in their distance hop 2**k ranks in round k.

    Fewer and larger messages than pairwise: each block travels as often as its distance has ones (Bruck et al. 1997).
    """
    n = len(blocks)
    held = [{(rank, destination): block for destination, block in enumerate(row)} for rank, row in enumerate(blocks)]
    hop = 1
    while hop < n:
        moving = [[key for key in held[rank] if (key[1] - key[0]) % n & hop] for rank in range(n)]
        messages = []
        for rank in range(n):
            flat = [held[rank].pop(key) for key in moving[rank]]
            message = network.send(np.concatenate([block.ravel() for block in flat]), rank, (rank + hop) % n)
            cuts = np.cumsum([block.size for block in flat])[:-1]
            messages.append({key: cut.reshape(b.shape) for key, cut, b in zip(moving[rank], np.split(message, cuts), flat)})
        for rank in range(n):
            held[(rank + hop) % n] |= messages[rank]
        network.end_round()
        hop *= 2
    return [[held[rank][source, rank].copy() for source in range(n)] for rank in range(n)]


ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "all_reduce": ("ring", "tree", "halving_doubling", "double_binary_tree", "hierarchical"),
    "reduce_scatter": ("ring", "halving_doubling"),
    "all_gather": ("ring", "halving_doubling"),
    "broadcast": ("ring", "tree", "hierarchical"),
    "all_to_all": ("pairwise", "bruck"),
}
_FLAT: Mapping[tuple[str, str], Callable[..., list[Any]]] = {
    ("all_reduce", "ring"): ring_all_reduce,
    ("all_reduce", "tree"): tree_all_reduce,
    ("all_reduce", "halving_doubling"): halving_doubling_all_reduce,
    ("all_reduce", "double_binary_tree"): double_binary_tree_all_reduce,
    ("reduce_scatter", "ring"): ring_reduce_scatter,
    ("reduce_scatter", "halving_doubling"): halving_reduce_scatter,
    ("all_gather", "ring"): ring_all_gather,
    ("all_gather", "halving_doubling"): doubling_all_gather,
    ("all_to_all", "pairwise"): pairwise_all_to_all,
    ("all_to_all", "bruck"): bruck_all_to_all,
}


def collective(
    *,
    operation: str,
    algorithm: str,
    parts: Sequence[np.ndarray],
    ranks_per_node: int = 1,
    root: int = 0,
    traffic: Traffic | None = None,
) -> list[np.ndarray]:
    """Run one collective over `parts`, one array per rank; return what each rank ends with.

    all_reduce and broadcast keep the array's shape. reduce_scatter gives rank r the r-th of n flat chunks of the sum,
    all_gather all arrays behind each other, flat. all_to_all exchanges the n flat chunks of each array.

    Raises:
        ValueError: unknown operation or algorithm, no rank, ranks that hold different shapes, a root that is no rank, ranks
            that are no power of two where the algorithm needs one, or nodes that do not divide them.

    >>> parts = [np.array([1.0, 2.0]), np.array([10.0, 20.0])]
    >>> collective(operation="all_reduce", algorithm="ring", parts=parts)
    [array([11., 22.]), array([11., 22.])]
    >>> collective(operation="all_to_all", algorithm="pairwise", parts=parts)
    [array([ 1., 10.]), array([ 2., 20.])]
    """
    if algorithm not in ALGORITHMS.get(operation, ()):
        raise ValueError(f"{operation} by {algorithm!r}: known are {dict(ALGORITHMS)}")
    same_shapes(list(parts))
    if not 0 <= root < len(parts):
        raise ValueError(f"root={root} is not a rank of {len(parts)}")
    traffic = Traffic() if traffic is None else traffic
    shape = parts[0].shape
    if operation == "all_to_all":
        blocks = [split(part, len(parts)) for part in parts]
        return [np.concatenate(row) for row in _FLAT[operation, algorithm](blocks, traffic)]
    if operation == "broadcast":
        if algorithm == "hierarchical":
            results = hierarchical_broadcast(parts, traffic, ranks_per_node, root)
        else:
            results = (ring_broadcast if algorithm == "ring" else tree_broadcast)(parts, traffic, root)
    elif algorithm == "hierarchical":
        results = hierarchical_all_reduce(parts, traffic, ranks_per_node)
    else:
        results = _FLAT[operation, algorithm](parts, traffic)
    return [result.reshape(shape) for result in results] if operation in ("all_reduce", "broadcast") else results


@dataclass(frozen=True)
class Volume:
    """What a collective takes: rounds that follow each other, and the most bytes one rank sends."""

    rounds: int
    sent_bytes: float


def volume(operation: str, algorithm: str, num_ranks: int, num_bytes: float, *, ranks_per_node: int = 1) -> Volume:
    """Return rounds and bytes in closed form, for arrays that the ranks divide.

    `num_bytes` is the whole array: the sum of all shards for all_gather, what one rank holds for the others.

    Raises:
        ValueError: no closed form for this pair (double_binary_tree and bruck depend on the order of messages), or ranks the
            algorithm refuses.

    >>> volume("all_reduce", "ring", 4, 1000.0)
    Volume(rounds=6, sent_bytes=1500.0)
    """
    n, log = num_ranks, (num_ranks - 1).bit_length()
    once = num_bytes * (n - 1) / n
    if algorithm == "halving_doubling":
        if operation == "all_reduce":
            power = power_of_two_below(n)
            inner = 2 * num_bytes * (power - 1) / power
            extra = n > power
            return Volume(2 * (power.bit_length() - 1) + 2 * extra, max(inner + extra * num_bytes, 0.0))
        _need_power_of_two(n)
    nodes = len(nodes_of(n, ranks_per_node)) if algorithm == "hierarchical" else 1
    g = ranks_per_node
    node_log, rail_log = (g - 1).bit_length(), (nodes - 1).bit_length()
    closed = {
        ("all_reduce", "ring"): Volume(2 * (n - 1), 2 * once),
        ("all_reduce", "tree"): Volume(2 * log, num_bytes * log),
        ("all_reduce", "hierarchical"): Volume(
            2 * (g - 1) + 2 * (nodes - 1), 2 * num_bytes * (g - 1) / g + 2 * num_bytes / g * (nodes - 1) / nodes
        ),
        ("reduce_scatter", "ring"): Volume(n - 1, once),
        ("reduce_scatter", "halving_doubling"): Volume(log, once),
        ("all_gather", "ring"): Volume(n - 1, once),
        ("all_gather", "halving_doubling"): Volume(log, once),
        ("broadcast", "ring"): Volume(2 * (n - 1), 2 * once),
        ("broadcast", "tree"): Volume(log, num_bytes * log),
        ("broadcast", "hierarchical"): Volume(node_log + rail_log, num_bytes * (node_log + rail_log)),
        ("all_to_all", "pairwise"): Volume(n - 1, once),
    }
    if (operation, algorithm) not in closed:
        raise ValueError(f"{operation} by {algorithm!r} has no closed form")
    return closed[operation, algorithm]


def ring_all_reduce_cost(d: Dims) -> Cost:
    """The ring's all-reduce over N ranks of E elements each: additions, and elements all ranks send and receive."""
    moved = 2 * (d["N"] - 1) * d["E"]
    return Cost(flops=(d["N"] - 1) * d["E"], elements_read=moved, elements_written=moved)


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw an operation, an algorithm and one to four ranks that hold small whole numbers, so that sums are exact."""
    operation = str(rng.choice(list(ALGORITHMS)))
    algorithm = str(rng.choice(ALGORITHMS[operation]))
    num_ranks = int(rng.choice([1, 2, 4] if algorithm == "halving_doubling" else [1, 2, 3, 4]))
    shape = [(int(rng.integers(0, 14)),), (3, 5), (1,)][int(rng.integers(3))]
    return {
        "operation": operation,
        "algorithm": algorithm,
        "parts": [rng.integers(-99, 100, shape).astype(np.float64) for _ in range(num_ranks)],
        "ranks_per_node": int(rng.choice([size for size in (1, 2, 3, 4) if num_ranks % size == 0])),
        "root": int(rng.integers(num_ranks)),
    }


COLLECTIVES = Procedure(
    reference=collective, examples=examples, paper="doi:10.1016/j.jpdc.2008.09.002", cost=ring_all_reduce_cost
)
