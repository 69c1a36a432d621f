"""Expert parallelism: tokens travel to the ranks that hold their experts, and back.

GShard (Lepikhin et al. 2020, arXiv:2006.16668, section 3.2) gives every expert `capacity` places for the tokens of each rank
and drops what does not fit; first choices of all tokens come before second choices. DeepSpeed-MoE (Rajbhandari et al. 2022,
arXiv:2201.05596) does the same with all-to-alls of padded buffers. Dropless routing (MegaBlocks, Gale et al. 2022,
arXiv:2211.15841) sends what there is, after an exchange of counts.

p ranks hold E / p experts each. Tokens go out and results come back, gradients likewise: four all-to-alls of p - 1 rounds. Over
all ranks, with C places per expert and rank,

    4 (p - 1) E C D elements with capacity,       4 D elements per choice of an expert on another rank without,
    p (p - 1) E / p counts of 8 bytes without,    2 (p - 1) D E elements for the gradient of the gate, held whole by all

Axes: N token, D model width, E expert, F expert width, K choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Procedure
from llmlab.reference.parallel._exchange import all_reduce, all_to_all, same_to_rounding, split
from llmlab.reference.parallel._traffic import Traffic


def places(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """Return the places each expert has for one rank's tokens: its even share times the factor, rounded up, at least 1.

    >>> places(8, 4, 2, 1.0), places(8, 4, 1, 1.25)
    (4, 3)
    """
    return max(1, int(np.ceil(num_tokens * top_k * capacity_factor / num_experts)))


def choose(logits_NE: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (experts_NK, gates_NK): the largest probabilities, the lowest expert first among equals, scaled to sum to 1."""
    probs_NE = softmax(logits_NE)
    experts_NK = np.argsort(-probs_NE, axis=1, kind="stable")[:, :top_k]
    chosen_NK = np.take_along_axis(probs_NE, experts_NK, axis=1)
    return experts_NK, chosen_NK / chosen_NK.sum(axis=1, keepdims=True)


def queues(experts_NK: np.ndarray, num_experts: int, capacity: int | None) -> list[np.ndarray]:
    """Return for each expert the choices that go to it, as indices into experts_NK.ravel(), in order; at most `capacity`.

    >>> [queue.tolist() for queue in queues(np.array([[0, 1], [0, 1], [1, 0]]), 2, 2)]
    [[0, 2], [4, 1]]
    """
    N, K = experts_NK.shape
    by_choice = np.arange(N * K).reshape(N, K).T.ravel()  # every first choice, then every second one
    wanted = experts_NK.ravel()[by_choice]
    return [by_choice[wanted == expert][:capacity] for expert in range(num_experts)]


def dispatch(
    rows: list[list[np.ndarray]], capacity: int | None, traffic: Traffic, *, counts_known: bool = False
) -> list[list[list[np.ndarray]]]:
    """Send `rows[source][expert]` to the experts' ranks; return `[rank][own expert][source]`.

    With capacity every block is padded with zero rows to that many, and keeps them; without, counts are sent ahead unless
    they are known from the forward pass.
    """
    ranks, own = len(rows), len(rows[0]) // len(rows)
    if capacity is not None:
        rows = [[np.concatenate([r, np.zeros((capacity - len(r), r.shape[1]), r.dtype)]) for r in source] for source in rows]
    counts = [list(np.array([len(block) for block in source]).reshape(ranks, own)) for source in rows]
    if capacity is None and not counts_known:
        all_to_all(counts, traffic)
    going = [[np.concatenate(source[own * to : own * (to + 1)]) for to in range(ranks)] for source in rows]
    came = all_to_all(going, traffic)
    cut = [[np.split(came[to][source], np.cumsum(counts[source][to])[:-1]) for source in range(ranks)] for to in range(ranks)]
    return [[[cut[to][source][expert] for source in range(ranks)] for expert in range(own)] for to in range(ranks)]


def combine(blocks: list[list[list[np.ndarray]]], traffic: Traffic) -> list[list[np.ndarray]]:
    """Send results back: `[rank][own expert][source]` becomes `[source][expert]`."""
    ranks, own = len(blocks), len(blocks[0])
    going = [[np.concatenate([blocks[rank][e][to] for e in range(own)]) for to in range(ranks)] for rank in range(ranks)]
    came = all_to_all(going, traffic)
    lengths = [[[len(blocks[rank][e][to]) for e in range(own)] for rank in range(ranks)] for to in range(ranks)]
    return [
        [part for rank in range(ranks) for part in np.split(came[to][rank], np.cumsum(lengths[to][rank])[:-1])]
        for to in range(ranks)
    ]


def expert(
    *,
    x_ND: np.ndarray,
    gate_DE: np.ndarray,
    up_EDF: np.ndarray,
    down_EFD: np.ndarray,
    dout_ND: np.ndarray,
    num_ranks: int,
    top_k: int = 2,
    capacity_factor: float | None = None,
    traffic: Traffic | None = None,
) -> dict[str, np.ndarray]:
    """Run a mixture-of-experts layer forwards and backwards, tokens and experts cut over the ranks.

        out_n = sum_k gate_nk ReLU(x_n U_e) V_e over the choices e = e_nk that found a place

    Returns out, the gradient of every argument, and `kept_NK`: which choices found a place (all without a capacity factor).

    Raises:
        ValueError: tokens or experts do not divide by the ranks, top_k is not in 1..E, or the capacity factor is not positive.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> drawn = expert_arguments(rng, N=8, D=3, E=4, F=5)
    >>> result = expert(**drawn, num_ranks=2, top_k=2, capacity_factor=1.0, traffic=traffic)
    >>> traffic.total_bytes == (4 * (2 - 1) * 4 * places(4, 4, 2, 1.0) * 3 + 2 * (2 - 1) * 3 * 4) * 8
    True
    """
    E = gate_DE.shape[1]
    if not 1 <= top_k <= E:
        raise ValueError(f"top_k={top_k} is not in 1..{E} experts")
    if capacity_factor is not None and not capacity_factor > 0:
        raise ValueError(f"capacity_factor={capacity_factor} is not positive")
    traffic = Traffic() if traffic is None else traffic
    x, dout = split(x_ND, num_ranks, 0, "tokens"), split(dout_ND, num_ranks, 0, "tokens")
    up, down = split(up_EDF, num_ranks, 0, "experts"), split(down_EFD, num_ranks, 0, "experts")
    ranks, own = range(num_ranks), range(E // num_ranks)
    capacity = None if capacity_factor is None else places(len(x[0]), E, top_k, capacity_factor)

    routes = [choose(part @ gate_DE, top_k) for part in x]
    waiting = [queues(experts_NK, E, capacity) for experts_NK, _ in routes]
    arrived = dispatch([[x[r][queue // top_k] for queue in waiting[r]] for r in ranks], capacity, traffic)
    hidden = [[[rows @ up[r][e] for rows in arrived[r][e]] for e in own] for r in ranks]
    results = combine([[[np.maximum(rows, 0) @ down[r][e] for rows in hidden[r][e]] for e in own] for r in ranks], traffic)
    out = [np.zeros_like(part) for part in x]
    for r in ranks:
        for queue, rows in zip(waiting[r], results[r]):
            out[r][queue // top_k] += routes[r][1].ravel()[queue, None] * rows[: len(queue)]  # a token is in a queue once

    weighted = [[routes[r][1].ravel()[queue, None] * dout[r][queue // top_k] for queue in waiting[r]] for r in ranks]
    dresults = dispatch(weighted, capacity, traffic, counts_known=True)
    dhidden = [[[d @ down[r][e].T * (h > 0) for d, h in zip(dresults[r][e], hidden[r][e])] for e in own] for r in ranks]
    ddown = [np.stack([sum(np.maximum(h, 0).T @ d for d, h in zip(dresults[r][e], hidden[r][e])) for e in own]) for r in ranks]
    dup = [np.stack([sum(rows.T @ d for d, rows in zip(dhidden[r][e], arrived[r][e])) for e in own]) for r in ranks]
    drows = combine([[[d @ up[r][e].T for d in dhidden[r][e]] for e in own] for r in ranks], traffic)
    dx, dgates = [np.zeros_like(part) for part in x], [np.zeros(part.shape) for _, part in routes]
    for r in ranks:
        for queue, back, rows in zip(waiting[r], drows[r], results[r]):
            dx[r][queue // top_k] += back[: len(queue)]
            dgates[r].ravel()[queue] = np.einsum("nd,nd->n", dout[r][queue // top_k], rows[: len(queue)])
    dlogits = [_choose_backward(dgates[r], x[r] @ gate_DE, *routes[r]) for r in ranks]
    dgate = all_reduce([x[r].T @ dlogits[r] for r in ranks], traffic)[-1]
    kept = [np.isin(np.arange(part.size), np.concatenate(waiting[r])).reshape(part.shape) for r, (part, _) in enumerate(routes)]
    return {
        "out": np.concatenate(out),
        "dx": np.concatenate([dx[r] + dlogits[r] @ gate_DE.T for r in ranks]),
        "dgate": dgate,
        "dup": np.concatenate(dup),
        "ddown": np.concatenate(ddown),
        "kept": np.concatenate(kept),
    }


def _choose_backward(dgates_NK: np.ndarray, logits_NE: np.ndarray, experts_NK: np.ndarray, gates_NK: np.ndarray) -> np.ndarray:
    """Return dlogits_NE: gates are a softmax over the chosen logits alone, the others cancel."""
    dchosen_NK = gates_NK * (dgates_NK - np.sum(dgates_NK * gates_NK, axis=1, keepdims=True))
    dlogits_NE = np.zeros_like(logits_NE)
    np.put_along_axis(dlogits_NE, experts_NK, dchosen_NK, axis=1)
    return dlogits_NE


def expert_arguments(rng: np.random.Generator, *, N: int, D: int, E: int, F: int) -> dict[str, np.ndarray]:
    """Draw tokens, a gate, experts and an output gradient."""
    shapes = {"x_ND": (N, D), "gate_DE": (D, E), "up_EDF": (E, D, F), "down_EFD": (E, F, D), "dout_ND": (N, D)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def expert_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small layer on 1, 2 or 4 ranks, with tight, ample or no capacity."""
    ranks = int(rng.choice([1, 2, 4]))
    D, F = (int(size) for size in rng.integers(1, 8, 2))
    E, N = ranks * int(rng.integers(1, 4)), ranks * int(rng.integers(1, 7))
    factor = [None, 0.5, 1.0, 1.25][int(rng.integers(4))]
    drawn = expert_arguments(rng, N=N, D=D, E=E, F=F)
    return {**drawn, "num_ranks": ranks, "top_k": int(rng.integers(1, min(E, 3) + 1)), "capacity_factor": factor}


EXPERT = Procedure(
    reference=expert,
    examples=expert_examples,
    paper="arXiv:2006.16668",
    same=same_to_rounding,
)
