"""Two-level all-to-all between real processes: pairwise messages inside the node, then bundles between same places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from llmlab.kernels.parallel import _world
from llmlab.kernels.parallel._ranks_torch import exchange, tensor
from llmlab.kernels.twin import twin
from llmlab.reference.parallel.collectives import nodes_of
from llmlab.reference.parallel.hierarchical_all_to_all import HIERARCHICAL_ALL_TO_ALL


@twin(HIERARCHICAL_ALL_TO_ALL, backend="torch", dtypes=("float64",))
def hierarchical_all_to_all(*, blocks: Sequence[Sequence[np.ndarray]], ranks_per_node: int) -> list[list[np.ndarray]]:
    nodes_of(len(blocks), ranks_per_node)
    lengths = [[len(block) for block in row] for row in blocks]
    settings = {"lengths": lengths, "g": ranks_per_node}
    return _world.run(one_rank, [{"row": list(row), **settings} for row in blocks])


def one_rank(row: list[np.ndarray], lengths: list[list[int]], g: int) -> list[np.ndarray]:
    """Send this rank's blocks; return what all had for it. `lengths[source][destination]` is known to all."""
    n, me = dist.get_world_size(), dist.get_rank()
    m, node, place = n // g, me // g, me % g
    here = list(range(node * g, node * g + g))
    blocks = [tensor(block) for block in row]
    # Inside: to each place of this node, what this rank has for that place on every node.
    outgoing = [torch.cat([blocks[k * g + p] for k in range(m)]) for p in range(g)]
    arriving = [[lengths[rank][k * g + place] for k in range(m)] for rank in here]
    incoming = _swap(outgoing, [sum(sizes) for sizes in arriving], here, place)
    pieces = [torch.split(part, sizes) for part, sizes in zip(incoming, arriving)]
    # Between: to the same place of each node, what all of this node have for it.
    bundles = [torch.cat([part[k] for part in pieces]) for k in range(m)]
    rail = list(range(place, n, g))
    sizes = [[lengths[source][me] for source in range(k * g, k * g + g)] for k in range(m)]
    received = _swap(bundles, [sum(own) for own in sizes], rail, node)
    return [part.cpu().numpy() for bundle, own in zip(received, sizes) for part in torch.split(bundle, own)]


def _swap(outgoing: Sequence[torch.Tensor], sizes: Sequence[int], ranks: Sequence[int], mine: int) -> list[torch.Tensor]:
    """Give member i `outgoing[i]`; return what each member gave, `sizes[i]` elements from member i."""
    incoming = [outgoing[mine] if member == mine else outgoing[0].new_empty(size) for member, size in enumerate(sizes)]
    others = [member for member in range(len(ranks)) if member != mine]
    exchange(
        out=[(outgoing[member], ranks[member]) for member in others],
        into=[(incoming[member], ranks[member]) for member in others],
    )
    return incoming
