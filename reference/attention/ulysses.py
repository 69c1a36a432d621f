"""DeepSpeed-Ulysses: trade sequence shards for head shards around attention (Jacobs et al. 2023, arXiv:2309.14509).

Each of p ranks holds some positions of every head. An all-to-all gives it every position of some heads; it attends as if alone;
another all-to-all gives the result back. Ranks may be no more than key/value heads, and both must divide; what a rank sends
falls as 1/p, where a ring's stays. With Q = B T N H elements of queries (N = K G) and C = B S K H of keys, over all ranks:

    forward   (p - 1)/p (2 Q + 2 C) elements: queries and result, keys and values
    backward  the same, in the other direction; together 8 all-to-alls of p - 1 rounds

Axes: B batch, T query position, S key position, K key/value head, G query heads per key/value head, H head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.attention._masked import attend, attend_backward, causal_TS, require_keys
from llmlab.reference.attention.ring import attention_arguments
from llmlab.reference.op import Procedure
from llmlab.reference.parallel._exchange import Parts, all_to_all, same_to_rounding, split
from llmlab.reference.parallel._traffic import Traffic


def heads_for_positions(parts: Parts, traffic: Traffic) -> Parts:
    """Give rank r all positions of the r-th part of the heads (axis 2); each rank held some positions (axis 1) of all."""
    received = all_to_all([np.split(part, len(parts), axis=2) for part in parts], traffic)
    return [np.concatenate(came, axis=1) for came in received]


def positions_for_heads(parts: Parts, traffic: Traffic) -> Parts:
    """The way back: give rank r its positions of all heads."""
    received = all_to_all([np.split(part, len(parts), axis=1) for part in parts], traffic)
    return [np.concatenate(came, axis=2) for came in received]


def ulysses(
    *,
    q_BTKGH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    dout_BTKGH: np.ndarray,
    num_ranks: int,
    causal: bool = True,
    traffic: Traffic | None = None,
) -> dict[str, np.ndarray]:
    """Attend across sequence shards by exchanging heads, forwards and backwards; return out, dq, dk and dv.

        out = softmax(q k' / sqrt(H)) v

    Raises:
        ValueError: positions or key/value heads do not divide by the ranks; causal, and more queries than keys.

    >>> rng = np.random.default_rng(0); traffic = Traffic()
    >>> drawn = attention_arguments(rng, B=1, T=4, S=4, K=2, G=3, H=5)
    >>> result = ulysses(**drawn, num_ranks=2, traffic=traffic)
    >>> traffic.total_bytes == 2 * (2 * 4 * 2 * 3 * 5 + 2 * 4 * 2 * 5) // 2 * 8, traffic.rounds
    (True, 8)
    """
    traffic = Traffic() if traffic is None else traffic
    T, S = q_BTKGH.shape[1], k_BSKH.shape[1]
    if causal:
        require_keys(T, S)
    split(k_BSKH, num_ranks, 2, "key/value heads")  # refuses what does not divide
    q, k, v = (heads_for_positions(split(whole, num_ranks, 1, "positions"), traffic) for whole in (q_BTKGH, k_BSKH, v_BSKH))
    seen_TS = causal_TS(T, S) if causal else np.ones((T, S), dtype=bool)
    ranks = range(num_ranks)
    out = positions_for_heads([attend(q[r], k[r], v[r], seen_TS) for r in ranks], traffic)

    dout = heads_for_positions(split(dout_BTKGH, num_ranks, 1, "positions"), traffic)
    grads = [attend_backward(dout[r], q[r], k[r], v[r], seen_TS) for r in ranks]
    dq, dk, dv = (positions_for_heads([grad[place] for grad in grads], traffic) for place in range(3))
    named = {"out": out, "dq": dq, "dk": dk, "dv": dv}
    return {name: np.concatenate(parts, axis=1) for name, parts in named.items()}


def ulysses_examples(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a small attention on 1 to 4 ranks."""
    ranks = int(rng.integers(1, 5))
    K, S = ranks * int(rng.integers(1, 3)), ranks * int(rng.integers(2, 5))
    T = S if rng.random() < 0.7 else S - ranks
    B, G, H = (int(size) for size in rng.integers(1, [3, 4, 9]))
    drawn = attention_arguments(rng, B=B, T=T, S=S, K=K, G=G, H=H)
    return {**drawn, "num_ranks": ranks, "causal": bool(rng.random() < 0.7)}


ULYSSES = Procedure(
    reference=ulysses,
    examples=ulysses_examples,
    paper="arXiv:2309.14509",
    same=same_to_rounding,
)
