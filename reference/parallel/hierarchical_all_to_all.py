"""All-to-all in two levels: first inside nodes, then between them (HetuMoE, Nie et al. 2022, arXiv:2203.14685, section 3.2).

n ranks in m nodes of g, rank = node * g + place; every rank has one block of b bytes for every rank. A flat all-to-all sends
n - g blocks of b bytes per rank over the network: many small messages. Here the ranks of a node first exchange among
themselves, so that place p holds everything the node has for the places p of all nodes; then places p of all nodes exchange
those bundles.

| | messages between nodes, per rank | bytes each | bytes between nodes, per rank | bytes inside the node, per rank |
|---|---|---|---|---|
| flat | n - g | b | (n - g) b | (g - 1) b |
| two levels | m - 1 | g b | (n - g) b | (g - 1) m b |

The network carries the same bytes in g times fewer messages; the fast links inside the node carry m times what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmlab.reference.op import Cost, Dims, Procedure
from llmlab.reference.parallel._group import Group, at_the_same_time
from llmlab.reference.parallel._traffic import Traffic
from llmlab.reference.parallel.collectives import nodes_of, pairwise_all_to_all


def hierarchical_all_to_all(
    *, blocks: Sequence[Sequence[np.ndarray]], ranks_per_node: int, traffic: Traffic | None = None
) -> list[list[np.ndarray]]:
    """Exchange `blocks[source][destination]` (one axis, any lengths); return per rank what every rank had for it.

    Raises:
        ValueError: a row that is not one block per rank, or nodes that do not divide the ranks.

    >>> blocks = [[np.array([10 * source + rank]) for rank in range(4)] for source in range(4)]
    >>> [block.tolist() for block in hierarchical_all_to_all(blocks=blocks, ranks_per_node=2)[3]]
    [[3], [13], [23], [33]]
    """
    n, g = len(blocks), ranks_per_node
    if wrong := [rank for rank, row in enumerate(blocks) if len(row) != n]:
        raise ValueError(f"rank {wrong[0]} has {len(blocks[wrong[0]])} blocks for {n} ranks")
    nodes = nodes_of(n, g)
    m, traffic = len(nodes), Traffic() if traffic is None else traffic
    bundles: list[list[np.ndarray]] = [
        [] for _ in range(n)
    ]  # rank -> per node, what its own node has for that node's same place
    received: list[list[np.ndarray]] = [[] for _ in range(n)]

    def inside(group: Group, ranks: Sequence[int]) -> None:
        outgoing = [
            [np.concatenate([blocks[rank][node * g + place] for node in range(m)]) for place in range(g)] for rank in ranks
        ]
        for place, arrived in enumerate(pairwise_all_to_all(outgoing, group)):
            # Sort what came by destination node; lengths are known, as a program would exchange them first.
            cut = [np.split(part, _cuts([blocks[rank][k * g + place] for k in range(m)])) for rank, part in zip(ranks, arrived)]
            bundles[ranks[place]] = [np.concatenate([pieces[node] for pieces in cut]) for node in range(m)]

    def between(group: Group, ranks: Sequence[int]) -> None:
        for rank, arrived in zip(ranks, pairwise_all_to_all([bundles[rank] for rank in ranks], group)):
            for node, bundle in enumerate(arrived):
                received[rank] += np.split(bundle, _cuts([blocks[source][rank] for source in nodes[node]]))

    at_the_same_time(traffic, nodes, inside)
    at_the_same_time(traffic, [list(rail) for rail in zip(*nodes)], between)
    return received


def _cuts(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return np.cumsum([len(piece) for piece in pieces])[:-1]


def exchange_cost(d: Dims) -> Cost:
    """Elements all ranks send and receive: N ranks, G a node, blocks of E elements."""
    moved = d["N"] * d["E"] * ((d["G"] - 1) * (d["N"] // d["G"]) + d["N"] - d["G"])
    return Cost(flops=0, elements_read=moved, elements_written=moved)


def examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw one to four ranks, a node size that divides them, and blocks of zero to four elements."""
    n = int(rng.integers(1, 5))
    return {
        "blocks": [[rng.standard_normal(rng.integers(0, 5)) for _ in range(n)] for _ in range(n)],
        "ranks_per_node": int(rng.choice([size for size in range(1, n + 1) if n % size == 0])),
    }


HIERARCHICAL_ALL_TO_ALL = Procedure(
    reference=hierarchical_all_to_all, examples=examples, paper="arXiv:2203.14685", cost=exchange_cost
)
