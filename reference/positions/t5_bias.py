"""T5's bucketed relative bias (Raffel et al. 2019, arXiv:1910.10683, section 2.1).

Axes: B batch, N head, T query position, S key position, U bucket.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def bucket_of(offset: np.ndarray, num_buckets: int, *, bidirectional: bool = True, max_distance: int = 128) -> np.ndarray:
    """Return the bucket of each offset (key position - query position), an integer below num_buckets.

    Looking both ways, the upper half of the buckets is for keys after the query, the lower half for the query's own position
    and the keys before it; looking back only, later keys share bucket 0. Of the m buckets of a direction, the first e = m // 2
    hold one distance each and the rest grow geometrically from e to max_distance, beyond which everything shares the last:

        distance n >= e is in bucket  e + floor((m - e) log(n / e) / log(max_distance / e))

    The floor is taken in integers, n^(m-e) against max_distance^k e^(m-e-k), so that no rounded logarithm moves an edge.

    Raises:
        ValueError: too few buckets for one exact and one geometric bucket in each direction, or max_distance inside the
            exact ones.

    >>> bucket_of(np.array([0, -1, -7, -8, -11, -12, -127, 1, 200]), 32).tolist()
    [0, 1, 7, 8, 8, 9, 15, 17, 31]
    >>> bucket_of(np.array([3, 0, -15, -16, -1000]), 32, bidirectional=False).tolist()
    [0, 0, 15, 16, 31]
    """
    own = num_buckets // 2 if bidirectional else num_buckets
    exact, grown = own // 2, own - own // 2
    if exact < 1:
        raise ValueError(f"num_buckets={num_buckets}: needs at least {4 if bidirectional else 2}")
    if max_distance <= exact:
        raise ValueError(f"max_distance={max_distance}: must be above the {exact} distances with buckets of their own")
    edges = [
        next(n for n in range(exact, max_distance + 1) if n**grown >= max_distance**k * exact ** (grown - k))
        for k in range(grown)
    ]
    distance = np.abs(offset) if bidirectional else np.maximum(-offset, 0)
    far = exact - 1 + np.searchsorted(edges, distance, side="right")
    later = own * (offset > 0) if bidirectional else 0
    return later + np.where(distance < exact, distance, far)


def buckets_TS(T: int, S: int, num_buckets: int, *, bidirectional: bool, max_distance: int) -> np.ndarray:
    """Return the bucket of every pair; query t sits at position S - T + t."""
    offset_TS = np.arange(S)[None, :] - (S - T + np.arange(T))[:, None]
    return bucket_of(offset_TS, num_buckets, bidirectional=bidirectional, max_distance=max_distance)


def t5_bias(
    scores_BNTS: np.ndarray, weight_UN: np.ndarray, *, bidirectional: bool = True, max_distance: int = 128
) -> np.ndarray:
    """Add to each attention score the head's learned weight of the pair's bucket; return biased_BNTS.

        biased = scores + weight[bucket(s - t), n],   t counted so that query t sits at position S - T + t

    All layers of T5 share one table, and its scores are not divided by sqrt(H). Encoders look both ways, decoders back only.
    NaN and infinities in the scores stay where they are.

    Raises:
        ValueError: too few buckets, or max_distance inside the exact ones.

    >>> t5_bias(np.zeros((1, 1, 2, 2)), np.array([[5.0], [1.0], [0.0], [9.0]]))[0, 0]
    array([[5., 9.],
           [1., 5.]])
    """
    T, S = scores_BNTS.shape[2:]
    bucket_TS = buckets_TS(T, S, weight_UN.shape[0], bidirectional=bidirectional, max_distance=max_distance)
    bias_TSN = weight_UN[bucket_TS]
    return scores_BNTS + np.moveaxis(bias_TSN, -1, 0)


def t5_bias_backward(
    dbiased_BNTS: np.ndarray,
    scores_BNTS: np.ndarray,
    weight_UN: np.ndarray,
    *,
    bidirectional: bool = True,
    max_distance: int = 128,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (dscores_BNTS, dweight_UN): a weight gathers the gradients of every pair of its bucket."""
    T, S = scores_BNTS.shape[2:]
    bucket_TS = buckets_TS(T, S, weight_UN.shape[0], bidirectional=bidirectional, max_distance=max_distance)
    dweight_UN = np.zeros_like(weight_UN)
    np.add.at(dweight_UN, bucket_TS, np.einsum("bnts->tsn", dbiased_BNTS))
    return dbiased_BNTS.copy(), dweight_UN


def t5_bias_cost(d: Dims) -> Cost:
    """One addition per score; scores and the table read once, written once. The buckets depend on T and S only."""
    elements = d["B"] * d["N"] * d["T"] * d["S"]
    return Cost(flops=elements, elements_read=elements + d["U"] * d["N"], elements_written=elements)


T5_BIAS = Op(
    reference=t5_bias,
    cost=t5_bias_cost,
    dims={"B": range(1, 3), "N": range(1, 5), "T": range(1, 6), "S": range(5, 30), "U": range(4, 33)},
    shapes={"t5-base encoder 512 tokens": {"B": 1, "N": 12, "T": 512, "S": 512, "U": 32}},
    paper="arXiv:1910.10683",
    backward=t5_bias_backward,
    options=({}, {"bidirectional": False}, {"max_distance": 21}),
    empty=("B", "T"),
    nonfinite=("scores_BNTS",),
    powers={"B": 1, "N": 1, "T": 1, "S": 1},
)
