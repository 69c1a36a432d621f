"""The same algorithms as messages between real processes: one rank per process, `isend` and `irecv` of torch.distributed.

`ranks` are the members of a group in order; every function is called by each of them at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import exchange, tensor
from llmlab.kernels.twin import twin
from llmlab.reference.parallel.collectives import ALGORITHMS, COLLECTIVES, double_tree, nodes_of, power_of_two_below

Chunks = list[torch.Tensor]


@twin(COLLECTIVES, backend="torch", dtypes=("float64",))
def collective(
    *, operation: str, algorithm: str, parts: Sequence[np.ndarray], ranks_per_node: int = 1, root: int = 0
) -> list[np.ndarray]:
    if algorithm not in ALGORITHMS.get(operation, ()):
        raise ValueError(f"{operation} by {algorithm!r}: known are {dict(ALGORITHMS)}")
    nodes_of(len(parts), ranks_per_node)
    settings = {"operation": operation, "algorithm": algorithm, "ranks_per_node": ranks_per_node, "root": root}
    return _world.run(one_rank, [{"part": part, **settings} for part in parts])


def one_rank(part: np.ndarray, operation: str, algorithm: str, ranks_per_node: int, root: int) -> np.ndarray:
    """Take part in one collective of the default group."""
    me, n = dist.get_rank(), dist.get_world_size()
    ranks, x = list(range(n)), tensor(part)
    node = [rank for rank in ranks if rank // ranks_per_node == me // ranks_per_node]
    rail = [rank for rank in ranks if rank % ranks_per_node == me % ranks_per_node]
    flat = x.ravel()
    if operation == "all_reduce":
        if algorithm == "ring":
            flat = ring_all_reduce(flat, ranks)
        elif algorithm == "tree":
            flat = tree_broadcast(tree_reduce(flat, ranks), ranks, 0)
        elif algorithm == "halving_doubling":
            flat = halving_doubling_all_reduce(flat, ranks)
        elif algorithm == "double_binary_tree":
            flat = double_binary_tree_all_reduce(flat, ranks)
        else:
            sizes = [chunk.numel() for chunk in chunks_of(flat, len(node))]
            shard = ring_all_reduce(ring_reduce_scatter(chunks_of(flat, len(node)), node), rail)
            flat = ring_all_gather(shard, sizes, node)
        return flat.reshape(x.shape).cpu().numpy()
    if operation == "broadcast":
        if algorithm == "ring":
            chunks = chunks_of(flat, n)
            others = [rank for rank in ranks if rank != root]
            exchange(
                out=[(chunks[rank], rank) for rank in others] if me == root else (),
                into=[(chunks[me], root)] if me != root else (),
            )
            flat = ring_all_gather(chunks[me], [chunk.numel() for chunk in chunks], ranks)
        elif algorithm == "tree":
            flat = tree_broadcast(flat, ranks, root)
        else:
            place = root % ranks_per_node
            if me % ranks_per_node == place:
                flat = tree_broadcast(flat, rail, root // ranks_per_node)
            flat = tree_broadcast(flat, node, place)
        return flat.reshape(x.shape).cpu().numpy()
    if operation == "reduce_scatter":
        result = (ring_reduce_scatter if algorithm == "ring" else halving_reduce_scatter)(chunks_of(flat, n), ranks)
    elif operation == "all_gather":
        gather = ring_all_gather if algorithm == "ring" else doubling_all_gather
        result = gather(flat, [flat.numel()] * n, ranks)
    else:
        result = (pairwise_all_to_all if algorithm == "pairwise" else bruck_all_to_all)(chunks_of(flat, n), ranks)
    return result.cpu().numpy()


def chunks_of(flat: torch.Tensor, count: int) -> Chunks:
    """Cut as `numpy.array_split` does; each chunk is a copy."""
    return [chunk.clone() for chunk in torch.tensor_split(flat, count)]


def ring_reduce_scatter(chunks: Chunks, ranks: Sequence[int]) -> torch.Tensor:
    """Return this rank's chunk of the sum."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    after, before = ranks[(me + 1) % n], ranks[me - 1]
    for step in range(1, n):
        incoming = torch.empty_like(chunks[(me - 1 - step) % n])
        exchange(out=[(chunks[(me - step) % n], after)], into=[(incoming, before)])
        chunks[(me - 1 - step) % n] += incoming
    return chunks[me]


def ring_all_gather(shard: torch.Tensor, sizes: Sequence[int], ranks: Sequence[int]) -> torch.Tensor:
    """Return all shards in order; `sizes` are their lengths."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    after, before = ranks[(me + 1) % n], ranks[me - 1]
    held = [shard.new_empty(size) for size in sizes]
    held[me] = shard
    for step in range(n - 1):
        exchange(out=[(held[(me - step) % n], after)], into=[(held[(me - 1 - step) % n], before)])
    return torch.cat(held)


def ring_all_reduce(flat: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Return the sum."""
    chunks = chunks_of(flat, len(ranks))
    return ring_all_gather(ring_reduce_scatter(chunks, ranks), [chunk.numel() for chunk in chunks], ranks)


def halving_reduce_scatter(chunks: Chunks, ranks: Sequence[int]) -> torch.Tensor:
    """Return this rank's chunk of the sum; partners swap the half that the other keeps."""
    me, distance = list(ranks).index(dist.get_rank()), len(ranks) // 2
    kept = list(range(len(ranks)))
    while distance:
        partner = me ^ distance
        theirs = [chunk for chunk in kept if chunk & distance == partner & distance]
        kept = [chunk for chunk in kept if chunk & distance == me & distance]
        mine = torch.cat([chunks[chunk] for chunk in kept])
        incoming = torch.empty_like(mine)
        exchange(out=[(torch.cat([chunks[chunk] for chunk in theirs]), ranks[partner])], into=[(incoming, ranks[partner])])
        for chunk, total in zip(kept, torch.split(mine + incoming, [chunks[chunk].numel() for chunk in kept])):
            chunks[chunk] = total
        distance //= 2
    return chunks[me]


def doubling_all_gather(shard: torch.Tensor, sizes: Sequence[int], ranks: Sequence[int]) -> torch.Tensor:
    """Return all shards in order; what a rank holds doubles each round."""
    me, distance, held = list(ranks).index(dist.get_rank()), 1, shard
    while distance < len(ranks):
        partner = me ^ distance
        first = partner // distance * distance
        incoming = shard.new_empty(sum(sizes[first : first + distance]))
        exchange(out=[(held, ranks[partner])], into=[(incoming, ranks[partner])])
        held = torch.cat([incoming, held] if me & distance else [held, incoming])
        distance *= 2
    return held


def halving_doubling_all_reduce(flat: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Return the sum; ranks beyond a power of two hand theirs to a neighbour and wait."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    extra = n - power_of_two_below(n)
    kept = [ranks[2 * pair] for pair in range(extra)] + list(ranks[2 * extra :])
    flat = flat.clone()
    if me < 2 * extra and me % 2:
        exchange(out=[(flat, ranks[me - 1])])
        exchange(into=[(flat, ranks[me - 1])])
        return flat
    if me < 2 * extra:
        incoming = torch.empty_like(flat)
        exchange(into=[(incoming, ranks[me + 1])])
        flat += incoming
    chunks = chunks_of(flat, len(kept))
    sizes = [chunk.numel() for chunk in chunks]
    total = doubling_all_gather(halving_reduce_scatter(chunks, kept), sizes, kept)
    if me < 2 * extra:
        exchange(out=[(total, ranks[me + 1])])
    return total


def tree_broadcast(flat: torch.Tensor, ranks: Sequence[int], root: int) -> torch.Tensor:
    """Return the array of member `root` along a binomial tree."""
    n = len(ranks)
    place, distance, held = (list(ranks).index(dist.get_rank()) - root) % n, 1, flat.clone()
    while distance < n:
        if distance <= place < 2 * distance:
            exchange(into=[(held, ranks[(place - distance + root) % n])])
        elif place < distance and place + distance < n:
            exchange(out=[(held, ranks[(place + distance + root) % n])])
        distance *= 2
    return held


def tree_reduce(flat: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Return the sum on the first member, something partial on the others."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    distance, total = 1 << max(0, (n - 1).bit_length() - 1), flat.clone()
    while distance and n > 1:
        if distance <= me < 2 * distance:
            exchange(out=[(total, ranks[me - distance])])
        elif me < distance and me + distance < n:
            incoming = torch.empty_like(total)
            exchange(into=[(incoming, ranks[me + distance])])
            total += incoming
        distance //= 2
    return total


def double_binary_tree_all_reduce(flat: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Return the sum; each half of the array goes up and down its own tree."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    halves = chunks_of(flat, 2)
    for half, tree in zip(halves, double_tree(n)):
        children = [ranks[rank] for rank in range(n) if tree[rank] == me]
        incoming = [(torch.empty_like(half), child) for child in children]
        exchange(into=incoming)
        for part, _ in incoming:
            half += part
        if tree[me] >= 0:
            exchange(out=[(half, ranks[tree[me]])])
            exchange(into=[(half, ranks[tree[me]])])
        exchange(out=[(half, child) for child in children])
    return torch.cat(halves)


def pairwise_all_to_all(blocks: Chunks, ranks: Sequence[int]) -> torch.Tensor:
    """Return what every member had for this one, in order; in round k member r sends to r + k."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    received = [torch.empty_like(blocks[me]) for _ in range(n)]
    received[me] = blocks[me]
    for step in range(1, n):
        exchange(
            out=[(blocks[(me + step) % n], ranks[(me + step) % n])], into=[(received[(me - step) % n], ranks[(me - step) % n])]
        )
    return torch.cat(received)


def bruck_all_to_all(blocks: Chunks, ranks: Sequence[int]) -> torch.Tensor:
    """Return what every member had for this one, in order; a block hops once for every one in its distance."""
    n, me = len(ranks), list(ranks).index(dist.get_rank())
    sizes = [block.numel() for block in blocks]
    # After the hops so far, the block in slot k belongs k ranks ahead of where it started; its size follows from there.
    slots = [blocks[(me + distance) % n] for distance in range(n)]
    hop, done = 1, 0
    while hop < n:
        moving = [distance for distance in range(n) if distance & hop]
        arriving = [sizes[(me - hop - (distance & done) + distance) % n] for distance in moving]
        incoming = slots[0].new_empty(sum(arriving))
        exchange(out=[(torch.cat([slots[k] for k in moving]), ranks[(me + hop) % n])], into=[(incoming, ranks[(me - hop) % n])])
        for distance, block in zip(moving, torch.split(incoming, arriving)):
            slots[distance] = block
        hop, done = 2 * hop, done | hop
    return torch.cat([slots[(me - source) % n] for source in range(n)])
