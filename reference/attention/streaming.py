"""StreamingLLM: the first tokens as attention sinks, the last ones in a rolling cache (Xiao et al. 2023, arXiv:2309.17453).

One query per sequence attends to a cache of C keys: `sinks` that never leave and C - sinks that are overwritten in turn
(section 3.2). Keys are kept unrotated and get the position they have in the cache, not in the text: distances never grow
beyond what the model was trained on (figure 4).

Axes: B batch, C slot of the cache, K key/value head, G query heads per key/value head, H head width (even).
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op
from llmlab.reference.positions.rope import rope


def streaming(
    q_BKGH: np.ndarray,
    k_BCKH: np.ndarray,
    v_BCKH: np.ndarray,
    seen_B: np.ndarray,
    *,
    sinks: int = 4,
    theta: float = 10000.0,
) -> np.ndarray:
    """Attend one query per sequence to its rolling cache; return out_BKGH. The query's own key is in the cache already.

    `seen` counts the tokens so far, this one included; token p lies in slot `slots_of(p)`, unrotated. With positions c within
    the cache, in the order of the text,

        out = softmax(rope(q, last c) rope(k, c)' / sqrt(H)) v

    As long as nothing was overwritten (seen <= C) that is plain causal attention. A NaN or infinity in a query stays in that
    query's row.

    Raises:
        ValueError: no room beside the sinks (sinks >= C), negative sinks, a sequence without tokens, an odd head width.

    >>> q = np.zeros((1, 1, 1, 2)); k = np.zeros((1, 3, 1, 2)); v = np.array([0.0, 0, 5, 5, 4, 4]).reshape(1, 3, 1, 2)
    >>> streaming(q, k, v, np.array([2]), sinks=1).ravel(), streaming(q, k, v, np.array([9]), sinks=1).ravel()
    (array([2.5, 2.5]), array([3., 3.]))
    """
    B, C, K, H = k_BCKH.shape
    require(C, seen_B, sinks)
    place_BC, filled_BC = cache_positions(seen_B, C, sinks)
    keys_BCKH = rope(k_BCKH, place_BC, theta=theta)
    q_B1NH, last_B1 = q_BKGH.reshape(B, 1, K * q_BKGH.shape[2], H), np.minimum(seen_B, C)[:, None] - 1
    queries_BKGH = rope(q_B1NH, last_B1, theta=theta).reshape(q_BKGH.shape)
    scores_BKGC = np.einsum("bkgh,bckh->bkgc", queries_BKGH, keys_BCKH) * H**-0.5
    weights_BKGC = softmax(np.where(filled_BC[:, None, None], scores_BKGC, -np.inf))
    return np.einsum("bkgc,bckh->bkgh", weights_BKGC, v_BCKH)


def slots_of(position: np.ndarray, C: int, sinks: int) -> np.ndarray:
    """Slot of the cache a token of this position in the text is written to.

    >>> slots_of(np.arange(8), C=5, sinks=2)
    array([0, 1, 2, 3, 4, 2, 3, 4])
    """
    return np.where(position < sinks, position, sinks + (position - sinks) % (C - sinks))


def cache_positions(seen_B: np.ndarray, C: int, sinks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (place_BC, filled_BC): the position within the cache of what each slot holds, and which slots hold something.

    >>> cache_positions(np.array([3, 6]), C=5, sinks=2)[0]
    array([[0, 1, 2, 3, 4],
           [0, 1, 4, 2, 3]])
    """
    slot_C, rolling = np.arange(C), C - sinks
    oldest_B1 = np.maximum(seen_B - C, 0)[:, None] % rolling  # slots before it were written again
    place_BC = np.where(slot_C < sinks, slot_C, sinks + (slot_C - sinks - oldest_B1) % rolling)
    return place_BC, slot_C < seen_B[:, None]


def require(C: int, seen_B: np.ndarray, sinks: int) -> None:
    """Refuse a cache that cannot roll, and sequences without a token."""
    if not 0 <= sinks < C:
        raise ValueError(f"sinks={sinks}: a cache of C={C} keeps between 0 and {C - 1} of them")
    if seen_B.size and seen_B.min() < 1:
        raise ValueError(f"seen={int(seen_B.min())}: the query's own token counts, so at least 1")


def streaming_cost(d: Dims) -> Cost:
    """A full cache: both products, 2 FLOPs per multiply-add, and 3 H for every rotation; exponentials are not counted.

    Queries, keys, values and counts are read once, the result is written once: a step costs the same however long the text.
    """
    heads = d["K"] * d["G"]
    return Cost(
        flops=d["B"] * d["H"] * (4 * heads * d["C"] + 3 * (heads + d["K"] * d["C"])),
        elements_read=d["B"] * (d["H"] * (heads + 2 * d["K"] * d["C"]) + 1),
        elements_written=d["B"] * heads * d["H"],
    )


def tokens_seen(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """From a single token to several times around the cache."""
    return rng.integers(1, 4 * d["C"] + 2, d["B"])


STREAMING = Op(
    reference=streaming,
    cost=streaming_cost,
    dims={"B": range(1, 4), "C": range(5, 40), "K": range(1, 3), "G": range(1, 4), "R": range(1, 10)},
    derived={"H": lambda d: 2 * d["R"]},
    shapes={
        "llama-2-7b, 4 sinks and 2044 recent": {"B": 1, "C": 2048, "K": 32, "G": 1, "R": 64},
        "llama-3-8b, 4k cache, batch 8": {"B": 8, "C": 4096, "K": 8, "G": 4, "R": 64},
    },
    paper="arXiv:2309.17453",
    draw={"seen_B": tokens_seen},
    options=({}, {"sinks": 0}, {"sinks": 1, "theta": 500.0}),
    empty=("B",),
    nonfinite=("q_BKGH",),
    powers={"B": 1, "C": 1, "K": 1, "R": 1},
)
