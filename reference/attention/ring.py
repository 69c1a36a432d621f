"""Ring attention: queries stay, keys and values travel around a ring (Liu, Zaharia and Abbeel 2023, arXiv:2310.01889).

Each of p ranks holds the queries, keys and values of some positions. In round i a rank attends to the keys that started i ranks
before it while it hands them on; partial results merge by their log-sum-exp. Backwards keys and values travel again, with their
gradients, which go one step further to come home. A rank sends only to the next one. With one rank's keys of n elements
(n = B (S / p) K H), over all ranks:

    forward   2 p (p - 1) n elements in p - 1 rounds
    backward  2 p (p - 1) n + 2 p p n elements in p rounds

Causal attention needs about half of the tiles. Where each rank holds a contiguous part, the last rank computes p of them and
the first one. Layout "zigzag" gives rank r the r-th and the r-th last of 2 p parts, so all have the same work
(arXiv:2407.21783, section 3.3.2); "striped" gives it every p-th position (Brandon et al. 2023, arXiv:2311.09431).

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.attention._shards import merge, tile_backward, tile_forward
from llmlab.reference.op import Cost, Dims, Procedure
from llmlab.reference.parallel._exchange import Parts, same_to_rounding
from llmlab.reference.parallel._traffic import Traffic

Pair = tuple[np.ndarray, np.ndarray]
LAYOUTS = ("contiguous", "zigzag", "striped")


def positions_of_ranks(length: int, num_ranks: int, layout: str) -> list[np.ndarray]:
    """Return the positions each rank holds, ascending.

    Raises:
        ValueError: unknown layout, or the length does not divide (by 2 ranks for zigzag).

    >>> [held.tolist() for held in positions_of_ranks(8, 2, "zigzag")]
    [[0, 1, 6, 7], [2, 3, 4, 5]]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is none of {', '.join(LAYOUTS)}")
    if num_ranks < 1:
        raise ValueError(f"num_ranks={num_ranks} < 1")
    parts = 2 * num_ranks if layout == "zigzag" else num_ranks
    if length % parts:
        raise ValueError(f"positions={length} is not a multiple of {parts} parts")
    if layout == "striped":
        return [np.arange(rank, length, num_ranks) for rank in range(num_ranks)]
    cut = np.split(np.arange(length), parts)
    if layout == "contiguous":
        return cut
    return [np.concatenate([cut[rank], cut[-1 - rank]]) for rank in range(num_ranks)]


def seen_by(queries: np.ndarray, keys: np.ndarray, causal: bool) -> np.ndarray:
    """Return seen_TS for the absolute positions of a tile's queries and keys."""
    return queries[:, None] >= keys if causal else np.ones((len(queries), len(keys)), dtype=bool)


def ring_forward(q: Parts, k: Parts, v: Parts, asking: Parts, held: Parts, causal: bool, traffic: Traffic) -> list[Pair]:
    """Return (out_BTKGH, lse_BTKG) of every rank; `asking` and `held` are the positions of its queries and keys."""
    num_ranks = len(q)
    moving = list(zip(k, v))
    merged = [(np.zeros_like(part), np.full(part.shape[:-1], -np.inf)) for part in q]
    for step in range(num_ranks):
        for rank, (keys, values) in enumerate(moving):
            seen = seen_by(asking[rank], held[(rank - step) % num_ranks], causal)
            if seen.any():
                merged[rank] = merge(merged[rank], tile_forward(q[rank], keys, values, seen))
        if step < num_ranks - 1:
            moving = turn(moving, traffic)
            traffic.end_round()
    return merged


def turn(pairs: list[Pair], traffic: Traffic) -> list[Pair]:
    """Hand both arrays of every rank to the next one."""
    ranks = len(pairs)
    sent = [tuple(traffic.send(array, rank, (rank + 1) % ranks) for array in pair) for rank, pair in enumerate(pairs)]
    return [(keys, values) for keys, values in sent[-1:] + sent[:-1]]


def ring_backward(
    dout: Parts,
    q: Parts,
    k: Parts,
    v: Parts,
    results: list[Pair],
    asking: Parts,
    held: Parts,
    causal: bool,
    traffic: Traffic,
) -> tuple[Parts, Parts, Parts]:
    """Return (dq, dk, dv) of every rank; the gradients of keys travel with them and go one step further."""
    num_ranks = len(q)
    moving = list(zip(k, v))
    travelling = [(np.zeros_like(keys), np.zeros_like(values)) for keys, values in moving]
    dq = [np.zeros_like(part) for part in q]
    along = [np.einsum("btkgh,btkgh->btkg", grad, out) for grad, (out, _) in zip(dout, results)]
    for step in range(num_ranks):
        for rank, (keys, values) in enumerate(moving):
            seen = seen_by(asking[rank], held[(rank - step) % num_ranks], causal)
            if seen.any():
                tile = tile_backward(dout[rank], q[rank], keys, values, results[rank][1], along[rank], seen)
                dq[rank] = dq[rank] + tile[0]
                travelling[rank] = (travelling[rank][0] + tile[1], travelling[rank][1] + tile[2])
        if step < num_ranks - 1:
            moving = turn(moving, traffic)
        travelling = turn(travelling, traffic)
        traffic.end_round()
    return dq, [keys for keys, _ in travelling], [values for _, values in travelling]


def ring(
    *,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    dout_BTKGH: np.ndarray,
    num_ranks: int,
    causal: bool = True,
    layout: str = "contiguous",
    traffic: Traffic | None = None,
) -> dict[str, np.ndarray]:
    """Attend across sequence shards, forwards and backwards; return out, dq, dk, dv and lse of the whole sequence.

        out = softmax(q k' / sqrt(H)) v,   lse = log sum_s e^(q k_s / sqrt(H))

    Raises:
        ValueError: positions do not divide by the ranks, an unknown layout, or causal with other queries than keys.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> drawn = attention_arguments(rng, B=1, T=4, S=4, K=1, G=2, H=3)
    >>> result = ring(**drawn, num_ranks=2, traffic=traffic)
    >>> traffic.total_bytes == (2 * 2 * 1 + 2 * 2 * 1 + 2 * 2 * 2) * (1 * 2 * 1 * 3) * 8, traffic.rounds
    (True, 3)
    """
    traffic = Traffic() if traffic is None else traffic
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    if causal and T != S:
        raise ValueError(f"causal attention over shards needs a key per query: T={T} != S={S}")
    asking, held = positions_of_ranks(T, num_ranks, layout), positions_of_ranks(S, num_ranks, layout)
    q, dout = ([whole[:, rows] for rows in asking] for whole in (q_BTKGH, dout_BTKGH))
    k, v = ([whole[:, rows] for rows in held] for whole in (k_BSKH, v_BSKH))
    results = ring_forward(q, k, v, asking, held, causal, traffic)
    dq, dk, dv = ring_backward(dout, q, k, v, results, asking, held, causal, traffic)
    back, back_held = np.argsort(np.concatenate(asking)), np.argsort(np.concatenate(held))
    return {
        "out": np.concatenate([out for out, _ in results], axis=1)[:, back],
        "lse": np.concatenate([lse for _, lse in results], axis=1)[:, back],
        "dq": np.concatenate(dq, axis=1)[:, back],
        "dk": np.concatenate(dk, axis=1)[:, back_held],
        "dv": np.concatenate(dv, axis=1)[:, back_held],
    }


def attention_arguments(rng: np.random.Generator, *, B: int, T: int, S: int, K: int, G: int, H: int) -> dict[str, np.ndarray]:
    """Draw queries, keys, values and an output gradient."""
    shapes = {"q_BTKGH": (B, T, K, G, H), "k_BSKH": (B, S, K, H), "v_BSKH": (B, S, K, H), "dout_BTKGH": (B, T, K, G, H)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def ring_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small attention on 1 to 4 ranks; without the mask, queries and keys may differ in number."""
    ranks, causal = int(rng.integers(1, 5)), bool(rng.random() < 0.7)
    layout = str(rng.choice(LAYOUTS))
    parts = 2 * ranks if layout == "zigzag" else ranks
    T = S = parts * int(rng.integers(1, 4))
    if not causal:
        S = parts * int(rng.integers(1, 4))
    B, K, G, H = (int(size) for size in rng.integers(1, [3, 3, 4, 9]))
    drawn = attention_arguments(rng, B=B, T=T, S=S, K=K, G=G, H=H)
    return {**drawn, "num_ranks": ranks, "causal": causal, "layout": layout}


def ring_cost(d: Dims) -> Cost:
    """FLOPs of one of P ranks with T queries and keys in all, no mask: 4 B T^2 / P per head and width forwards, 10 backwards.

    Backwards recomputes the scores: five products for the two of the forward pass. Queries are read once in each pass, all keys
    and values pass through the rank in each.
    """
    heads = d["K"] * d["G"]
    row = d["B"] * d["T"] * d["H"]
    return Cost(
        flops=14 * row * heads * d["T"] / d["P"],
        elements_read=3 * row * heads / d["P"] + 4 * row * d["K"],
        elements_written=2 * row * heads / d["P"] + 2 * row * d["K"],
    )


RING = Procedure(
    reference=ring,
    examples=ring_examples,
    paper="arXiv:2310.01889",
    same=same_to_rounding,
    cost=ring_cost,
)
