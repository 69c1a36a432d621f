"""Reformer's attention by locality-sensitive hashing (Kitaev et al. 2020, arXiv:2001.04451, section 2 and appendix A).

Axes: B batch, T position, N head, H head width, R round of hashing.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import attend_backward
from llmlab.reference.op import Cost, Dims, Op

CHUNK = 64  # tokens; the paper's m = 2 T / number of buckets


def hash_buckets(x_BTNH: np.ndarray, rotations_NHRE: np.ndarray) -> np.ndarray:
    """Return buckets_BNRT below 2 E: h(x) = argmax of [x Q, -x Q], Q random (section 2; Andoni et al. 2015).

    >>> hash_buckets(np.array([[[[1.0, 0.0]], [[0.0, -1.0]]]]), np.eye(2).reshape(1, 2, 1, 2)).ravel()
    array([0, 3])
    """
    rotated_BNRTE = np.einsum("btnh,nhre->bnrte", x_BTNH, rotations_NHRE)
    return np.argmax(np.concatenate([rotated_BNRTE, -rotated_BNRTE], axis=-1), axis=-1)


def reformer(
    qk_BTNH: np.ndarray, v_BTNH: np.ndarray, buckets_BNRT: np.ndarray, *, chunk: int = CHUNK, causal: bool = True
) -> np.ndarray:
    """Attend every token to those of its bucket, sorted and cut into chunks; return out_BTNH.

        P_i = union over rounds r of {j: h_r(i) = h_r(j), floor(s_i / m) - 1 <= floor(s_j / m) <= floor(s_i / m)}   (eq. 7, 8)
        out_i = softmax over P_i of q_i . k_j, times v_j,     k_j = q_j / |q_j|                                    (section 2)

    s_i is a token's place after sorting by (bucket, position), m the chunk: a token reaches its own chunk and the one before.
    The first chunk has none before it. Rounds are merged by their log-sum-exps; a pair that several rounds find counts once
    (appendix A divides by N_ij; here the later rounds leave it out, which is the same). A token attends to itself only when
    it sees nothing else (the paper's penalty of 10^5). Queries and keys are one array, keys have unit length, and scores are
    not scaled further. Buckets come from `hash_buckets`. A NaN or infinity in qk spoils every row that meets it.

    Raises:
        ValueError: a chunk below 1.

    >>> zero = np.zeros((1, 4, 1, 1)); values = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1, 1)
    >>> buckets = np.array([0, 1, 0, 0]).reshape(1, 1, 1, 4)
    >>> reformer(zero + 1, values, buckets, chunk=2).ravel()  # tokens 0 and 1 are alone; 3 sees 0 and 2
    array([1. , 2. , 1. , 2.5])
    """
    require_chunk(chunk)
    B, _, N, _ = qk_BTNH.shape
    out_BTNH = np.empty_like(v_BTNH)
    for b in range(B):
        for n in range(N):
            out_BTNH[b, :, n] = _head(qk_BTNH[b, :, n], v_BTNH[b, :, n], buckets_BNRT[b, n], chunk, causal)
    return out_BTNH


def require_chunk(chunk: int) -> None:
    """Refuse an empty chunk."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1")


def sorted_chunks(buckets_T: np.ndarray, chunk: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (queries, keys) of every chunk as positions: its own tokens, and those of the chunk before and its own.

    >>> [(q.tolist(), k.tolist()) for q, k in sorted_chunks(np.array([1, 0, 1, 0, 0]), 2)]
    [([1, 3], [1, 3]), ([4, 0], [1, 3, 4, 0]), ([2], [4, 0, 2])]
    """
    order_T = np.argsort(buckets_T, kind="stable")
    starts = range(0, len(order_T), chunk)
    return [(order_T[s : s + chunk], order_T[max(s - chunk, 0) : s + chunk]) for s in starts]


def may_see(buckets_T: np.ndarray, queries: np.ndarray, keys: np.ndarray, *, causal: bool) -> np.ndarray:
    """Return which pairs of a chunk share a bucket, are not one token with itself and, if causal, look back."""
    same = buckets_T[queries][:, None] == buckets_T[keys]
    return same & ((keys < queries[:, None]) if causal else (keys != queries[:, None]))


def unit_keys(qk_TH: np.ndarray) -> np.ndarray:
    """Return qk scaled to length 1; a row of zeros stays."""
    length_T1 = np.sqrt(np.sum(qk_TH * qk_TH, axis=-1, keepdims=True))
    return qk_TH / np.where(length_T1 == 0, 1, length_T1)


def _head(qk_TH: np.ndarray, v_TH: np.ndarray, buckets_RT: np.ndarray, chunk: int, causal: bool) -> np.ndarray:
    T, k_TH = len(qk_TH), unit_keys(qk_TH)
    met_TT = np.zeros((T, T), dtype=bool)
    total_T1, out_TH = np.full((T, 1), -np.inf, dtype=qk_TH.dtype), np.zeros_like(v_TH)
    for buckets_T in buckets_RT:
        for queries, keys in sorted_chunks(buckets_T, chunk):
            seen = may_see(buckets_T, queries, keys, causal=causal) & ~met_TT[np.ix_(queries, keys)]
            met_TT[np.ix_(queries, keys)] |= seen
            scores = np.where(seen, np.einsum("th,sh->ts", qk_TH[queries], k_TH[keys]), -np.inf)
            peak = np.maximum(np.max(scores, axis=-1, keepdims=True), total_T1[queries])
            shift = np.where(peak == -np.inf, 0, peak)
            with np.errstate(invalid="ignore"):
                weights, kept = np.exp(scores - shift), np.exp(total_T1[queries] - shift)
            together = kept + np.sum(weights, axis=-1, keepdims=True)
            added = kept * out_TH[queries] + np.einsum("ts,sh->th", weights, v_TH[keys])
            out_TH[queries] = added / np.where(together == 0, 1, together)
            with np.errstate(divide="ignore"):
                total_T1[queries] = shift + np.log(together)
    return np.where(total_T1 == -np.inf, v_TH, out_TH)


def union_BN1TT(buckets_BNRT: np.ndarray, *, chunk: int, causal: bool) -> np.ndarray:
    """Return P_i as a mask: who sees whom in any round, a token itself where it sees nobody else."""
    B, N, _, T = buckets_BNRT.shape
    met_BN1TT = np.zeros((B, N, 1, T, T), dtype=bool)
    for b, n in np.ndindex(B, N):
        for buckets_T in buckets_BNRT[b, n]:
            for queries, keys in sorted_chunks(buckets_T, chunk):
                met_BN1TT[b, n, 0][np.ix_(queries, keys)] |= may_see(buckets_T, queries, keys, causal=causal)
    alone = ~met_BN1TT.any(axis=-1, keepdims=True)
    return met_BN1TT | (alone & np.eye(T, dtype=bool))


def reformer_backward(
    dout_BTNH: np.ndarray,
    qk_BTNH: np.ndarray,
    v_BTNH: np.ndarray,
    buckets_BNRT: np.ndarray,
    *,
    chunk: int = CHUNK,
    causal: bool = True,
) -> tuple[np.ndarray, np.ndarray, None]:
    """Return (dqk_BTNH, dv_BTNH, None): softmax over the union; a shared row gathers its gradients as query and as key.

    dq from k = q / |q|:  (dk - (dk . k) k) / |q|
    """
    seen_BN1TT = union_BN1TT(buckets_BNRT, chunk=chunk, causal=causal)
    k_BTNH = unit_keys(qk_BTNH)
    root = qk_BTNH.shape[-1] ** 0.5  # attend_backward divides scores by it
    dq_BTNH, dk_BTNH, dv_BTNH = attend_backward(
        dout_BTNH[..., None, :], root * qk_BTNH[..., None, :], k_BTNH, v_BTNH, seen_BN1TT
    )
    length_BTN1 = np.sqrt(np.sum(qk_BTNH * qk_BTNH, axis=-1, keepdims=True))
    along_BTN1 = np.sum(dk_BTNH * k_BTNH, axis=-1, keepdims=True)
    dkey_BTNH = (dk_BTNH - along_BTN1 * k_BTNH) / np.where(length_BTN1 == 0, 1, length_BTN1)
    return root * dq_BTNH[..., 0, :] + dkey_BTNH, dv_BTNH, None


def chunk_pairs(T: int, chunk: int) -> int:
    """Count the pairs of one round: every chunk with itself and the one before.

    >>> chunk_pairs(5, 2), chunk_pairs(4, 8)
    (15, 16)
    """
    whole, rest = divmod(T, chunk)
    return (2 * whole - min(whole, 1)) * chunk**2 + rest * (rest + (chunk if whole else 0))


def reformer_cost(d: Dims, *, chunk: int = CHUNK) -> Cost:
    """Both matmuls over whole chunks in every round, hidden pairs included. Queries (which are the keys), values and buckets
    are read once; sorting is not counted.
    """
    token = d["B"] * d["N"] * d["H"]
    return Cost(
        flops=4 * token * d["R"] * chunk_pairs(d["T"], chunk),
        elements_read=2 * token * d["T"] + d["B"] * d["N"] * d["R"] * d["T"],
        elements_written=token * d["T"],
    )


def draw_buckets(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Few buckets for short texts, about one per half chunk for long ones."""
    return rng.integers(0, max(3, 2 * d["T"] // CHUNK), (d["B"], d["N"], d["R"], d["T"]))


REFORMER = Op(
    reference=reformer,
    cost=reformer_cost,
    dims={"B": range(1, 3), "T": range(1, 14), "N": range(1, 3), "H": range(2, 20), "R": range(1, 4)},
    shapes={"reformer 4k tokens, 8 rounds": {"B": 1, "T": 4096, "N": 8, "H": 64, "R": 8}},
    paper="arXiv:2001.04451",
    backward=reformer_backward,
    draw={"buckets_BNRT": draw_buckets},
    options=({}, {"chunk": 2}, {"chunk": 3, "causal": False}),
    empty=("B",),
    nonfinite=("v_BTNH",),
    powers={"B": 1, "T": 1, "N": 1, "H": 1, "R": 1},
)
