"""Attention over a packed batch of sequences of unequal length, without padding (Krell et al. 2021, arXiv:2107.02027).

Axes: U query tokens of all sequences, W key tokens of all sequences, Z = B + 1 boundaries of B sequences,
K key/value head, G query heads per key/value head, H head width; T and S mean query and key length of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from llmlab.reference.attention._masked import attend, attend_backward, causal_pairs, causal_TS
from llmlab.reference.op import Cost, Dims, Op


def varlen(
    q_UKGH: np.ndarray,
    k_WKH: np.ndarray,
    v_WKH: np.ndarray,
    query_starts_Z: np.ndarray,
    key_starts_Z: np.ndarray,
    *,
    causal: bool = True,
) -> np.ndarray:
    """Attend each sequence to itself alone; return out_UKGH.

    Sequence i owns queries query_starts[i] to query_starts[i + 1] and keys key_starts[i] to key_starts[i + 1]. Its last
    query sits at its last key's position. A sequence may be empty; a query that sees no key gives zeros (a sequence without
    keys, a query before position 0, a token past the last boundary).

        out = softmax(q k' / sqrt(H)) v        within a sequence

    A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: the two boundary arrays differ in length, decrease, or pass the end of the tokens.

    >>> q = np.zeros((3, 1, 1, 1)); v = np.array([1.0, 5, 7]).reshape(3, 1, 1)
    >>> varlen(q, v, v, np.array([0, 1, 1, 3]), np.array([0, 1, 1, 3])).ravel()
    array([1., 5., 6.])
    """
    out_UKGH = np.zeros_like(q_UKGH)
    for queries, keys in _sequences(q_UKGH, k_WKH, query_starts_Z, key_starts_Z):
        q_1TKGH, k_1SKH, v_1SKH = q_UKGH[queries][None], k_WKH[keys][None], v_WKH[keys][None]
        out_UKGH[queries] = attend(q_1TKGH, k_1SKH, v_1SKH, _seen_TS(queries, keys, causal))[0]
    return out_UKGH


def _sequences(
    q_UKGH: np.ndarray, k_WKH: np.ndarray, query_starts_Z: np.ndarray, key_starts_Z: np.ndarray
) -> Iterator[tuple[slice, slice]]:
    require_boundaries("query_starts", query_starts_Z, len(q_UKGH))
    require_boundaries("key_starts", key_starts_Z, len(k_WKH))
    if len(query_starts_Z) != len(key_starts_Z):
        raise ValueError(f"{len(query_starts_Z) - 1} sequences of queries, {len(key_starts_Z) - 1} of keys")
    for i in range(len(query_starts_Z) - 1):
        yield (
            slice(int(query_starts_Z[i]), int(query_starts_Z[i + 1])),
            slice(int(key_starts_Z[i]), int(key_starts_Z[i + 1])),
        )


def require_boundaries(name: str, starts_Z: np.ndarray, tokens: int) -> None:
    """Refuse boundaries that do not start at 0, decrease or pass the last token."""
    starts = [int(start) for start in starts_Z]
    if not starts or starts[0] != 0 or starts[-1] > tokens or any(a > b for a, b in pairwise(starts)):
        raise ValueError(f"{name}={starts} must rise from 0 to at most {tokens} tokens")


def _seen_TS(queries: slice, keys: slice, causal: bool) -> np.ndarray:
    T, S = queries.stop - queries.start, keys.stop - keys.start
    return causal_TS(T, S) if causal else np.ones((T, S), dtype=bool)


def varlen_backward(
    dout_UKGH: np.ndarray,
    q_UKGH: np.ndarray,
    k_WKH: np.ndarray,
    v_WKH: np.ndarray,
    query_starts_Z: np.ndarray,
    key_starts_Z: np.ndarray,
    *,
    causal: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None, None]:
    """Return (dq_UKGH, dk_WKH, dv_WKH, None, None), sequence by sequence."""
    dq_UKGH, dk_WKH, dv_WKH = np.zeros_like(q_UKGH), np.zeros_like(k_WKH), np.zeros_like(v_WKH)
    for queries, keys in _sequences(q_UKGH, k_WKH, query_starts_Z, key_starts_Z):
        dq, dk, dv = attend_backward(
            dout_UKGH[queries][None],
            q_UKGH[queries][None],
            k_WKH[keys][None],
            v_WKH[keys][None],
            _seen_TS(queries, keys, causal),
        )
        dq_UKGH[queries], dk_WKH[keys], dv_WKH[keys] = dq[0], dk[0], dv[0]
    return dq_UKGH, dk_WKH, dv_WKH, None, None


def varlen_cost(d: Dims, *, causal: bool = True) -> Cost:
    """Both matmuls over the seen pairs of B sequences of equal length, 2 FLOPs per multiply-add; exponentials are not counted.

    For unequal lengths sum the costs of the sequences. Everything is read once and the result written once.
    """
    heads = d["K"] * d["G"]
    pairs = causal_pairs(d["T"], d["S"]) if causal else d["T"] * d["S"]
    return Cost(
        flops=4 * d["B"] * heads * pairs * d["H"],
        elements_read=d["H"] * (heads * d["U"] + 2 * d["K"] * d["W"]) + 2 * d["Z"],
        elements_written=d["H"] * heads * d["U"],
    )


def boundaries(sequences: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Cut tokens into sequences: at random for a few tokens, empty ones and a rest included; evenly where the cost is timed."""
    if tokens > 64:
        return np.arange(sequences + 1) * (tokens // max(sequences, 1))
    cuts = np.sort(rng.integers(0, tokens + 1, size=sequences))
    return np.concatenate([[0], cuts])


VARLEN = Op(
    reference=varlen,
    cost=varlen_cost,
    dims={
        "B": range(1, 4),
        "T": range(1, 5),
        "S": range(1, 7),
        "K": range(1, 4),
        "G": range(1, 4),
        "H": range(1, 20),
    },
    derived={"U": lambda d: d["B"] * d["T"], "W": lambda d: d["B"] * d["S"], "Z": lambda d: d["B"] + 1},
    draw={
        "query_starts_Z": lambda d, rng: boundaries(d["B"], d["U"], rng),
        "key_starts_Z": lambda d, rng: boundaries(d["B"], d["W"], rng),
    },
    shapes={
        "llama-3.2-1b packed 4 x 512": {"B": 4, "T": 512, "S": 512, "K": 8, "G": 4, "H": 64},
        "llama-3-8b packed 8 x 128": {"B": 8, "T": 128, "S": 128, "K": 8, "G": 4, "H": 128},
    },
    paper="arXiv:2107.02027",
    backward=varlen_backward,
    options=({}, {"causal": False}),
    empty=("B",),
    nonfinite=("q_UKGH",),
    powers={"B": 1, "S": 1, "K": 1, "G": 1, "H": 1},
)
