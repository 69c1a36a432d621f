"""Linear attention: a kernel feature map in place of softmax makes causal attention a recurrence (Katharopoulos et al. 2020).

Source: "Transformers are RNNs", arXiv:2006.16236, sections 3.2 to 3.4. `linear` is the recurrence; `linear_in_chunks`
computes the same from masked products inside chunks and a state between them.

Axes: B batch, T position, N head, M query/key width, H value width, C position in a chunk.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._decayed import chunks, walk_back
from llmlab.reference.op import Cost, Dims, Op


def linear(
    q_BTNM: np.ndarray, k_BTNM: np.ndarray, v_BTNH: np.ndarray, state_BNMH: np.ndarray, total_BNM: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attend to all positions so far; return (out_BTNH, state_BNMH, total_BNM), the latter two as they stand after the last.

    `state` and `total` sum what came before the first position; zeros at the start of a sequence.

        f(x) = elu(x) + 1                                                 (eq. 7)
        state_i = state_{i-1} + f(k_i) v_i',  total_i = total_{i-1} + f(k_i)      (eq. 18 and 19)
        out_i = f(q_i)' state_i / f(q_i)' total_i                         (eq. 20, without the residual and f_l)

    Unlike softmax attention there is no 1/sqrt(M), and the feature map makes every weight positive. A NaN or infinity in a
    query stays in that query's row; in a key or value it spoils the state.

    Raises:
        ValueError: keys, values and queries differ in length.

    >>> q = np.ones((1, 2, 1, 1)); k = np.array([0.0, 1.0]).reshape(1, 2, 1, 1); v = np.array([3.0, 6.0]).reshape(1, 2, 1, 1)
    >>> out, state, total = linear(q, k, v, np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 1)))
    >>> out.ravel(), state.item(), total.item()
    (array([3., 5.]), 15.0, 3.0)
    """
    require_one_length(q_BTNM, k_BTNM, v_BTNH)
    fq_BTNM, fk_BTNM = feature(q_BTNM), feature(k_BTNM)
    out_BTNH = np.empty_like(v_BTNH)
    for t in range(v_BTNH.shape[1]):
        state_BNMH = state_BNMH + np.einsum("bnm,bnh->bnmh", fk_BTNM[:, t], v_BTNH[:, t])
        total_BNM = total_BNM + fk_BTNM[:, t]
        weight_BN = np.einsum("bnm,bnm->bn", fq_BTNM[:, t], total_BNM)
        out_BTNH[:, t] = np.einsum("bnm,bnmh->bnh", fq_BTNM[:, t], state_BNMH) / weight_BN[..., None]
    return out_BTNH, state_BNMH.copy(), total_BNM.copy()


def linear_in_chunks(
    q_BTNM: np.ndarray,
    k_BTNM: np.ndarray,
    v_BTNH: np.ndarray,
    state_BNMH: np.ndarray,
    total_BNM: np.ndarray,
    *,
    chunk: int = 64,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, `chunk` positions at a time: masked scores within a chunk, the state for all that came before it."""
    require_one_length(q_BTNM, k_BTNM, v_BTNH)
    fq_BTNM, fk_BTNM = feature(q_BTNM), feature(k_BTNM)
    out_BTNH = np.empty_like(v_BTNH)
    for part in chunks(v_BTNH.shape[1], chunk):
        scores_BNCD = np.tril(np.einsum("bcnm,bdnm->bncd", fq_BTNM[:, part], fk_BTNM[:, part]))
        within_BCNH = np.einsum("bncd,bdnh->bcnh", scores_BNCD, v_BTNH[:, part])
        before_BCNH = np.einsum("bcnm,bnmh->bcnh", fq_BTNM[:, part], state_BNMH)
        weight_BCN = np.moveaxis(scores_BNCD.sum(-1), -1, 1) + np.einsum("bcnm,bnm->bcn", fq_BTNM[:, part], total_BNM)
        out_BTNH[:, part] = (within_BCNH + before_BCNH) / weight_BCN[..., None]
        state_BNMH = state_BNMH + np.einsum("bcnm,bcnh->bnmh", fk_BTNM[:, part], v_BTNH[:, part])
        total_BNM = total_BNM + fk_BTNM[:, part].sum(1)
    return out_BTNH, state_BNMH.copy(), total_BNM.copy()


def feature(x: np.ndarray) -> np.ndarray:
    """elu(x) + 1: e**x below zero, x + 1 above (eq. 7)."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def feature_slope(x: np.ndarray) -> np.ndarray:
    """Derivative of `feature`."""
    return np.exp(np.minimum(x, 0))


def require_one_length(q_BTNM: np.ndarray, k_BTNM: np.ndarray, v_BTNH: np.ndarray) -> None:
    """Refuse queries, keys and values of different lengths: position i reads and writes at step i."""
    if not q_BTNM.shape[1] == k_BTNM.shape[1] == v_BTNH.shape[1]:
        raise ValueError(f"lengths differ: q T={q_BTNM.shape[1]}, k T={k_BTNM.shape[1]}, v T={v_BTNH.shape[1]}")


def linear_backward(
    dout_BTNH: np.ndarray,
    dstate_BNMH: np.ndarray,
    dtotal_BNM: np.ndarray,
    q_BTNM: np.ndarray,
    k_BTNM: np.ndarray,
    v_BTNH: np.ndarray,
    state_BNMH: np.ndarray,
    total_BNM: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (dq_BTNM, dk_BTNM, dv_BTNH, dstate_BNMH, dtotal_BNM).

    The weights are one more column of values, all ones, so that one backward walk (eq. 13 to 15) serves both sums.
    """
    fq_BTNM, fk_BTNM = feature(q_BTNM), feature(k_BTNM)
    out_BTNH, _, _ = linear(q_BTNM, k_BTNM, v_BTNH, state_BNMH, total_BNM)
    weight_BTN1 = np.einsum("btnm,btnm->btn", fq_BTNM, np.cumsum(fk_BTNM, 1) + total_BNM[:, None])[..., None]
    dsum_BTNH = dout_BTNH / weight_BTN1
    dweight_BTN1 = -np.sum(dsum_BTNH * out_BTNH, axis=-1, keepdims=True)
    dq, dk, dv, _, dstate = walk_back(
        np.concatenate([dsum_BTNH, dweight_BTN1], -1)[:, :, :, None],
        np.concatenate([dstate_BNMH, dtotal_BNM[..., None]], -1)[:, :, None],
        fq_BTNM,
        fk_BTNM,
        np.concatenate([v_BTNH, np.ones_like(weight_BTN1)], -1)[:, :, :, None],
        np.ones_like(weight_BTN1),
        np.concatenate([state_BNMH, total_BNM[..., None]], -1)[:, :, None],
    )
    return (
        dq * feature_slope(q_BTNM),
        dk * feature_slope(k_BTNM),
        dv[:, :, :, 0, :-1],
        dstate[:, :, 0, :, :-1],
        dstate[:, :, 0, :, -1],
    )


def linear_cost(d: Dims) -> Cost:
    """The recurrence: every step updates and reads the state, 2 FLOPs per multiply-add; the feature map is not counted.

    Per head and step 2 M H for the update, 2 M H for the reading, 3 M for the weight and its sum, H divisions. Everything is
    read once and written once; the state stays in caches between steps.
    """
    heads = d["B"] * d["N"]
    kept = heads * d["M"] * (d["H"] + 1)
    return Cost(
        flops=heads * d["T"] * (4 * d["M"] * d["H"] + 3 * d["M"] + d["H"]),
        elements_read=heads * d["T"] * (2 * d["M"] + d["H"]) + kept,
        elements_written=heads * d["T"] * d["H"] + kept,
    )


def linear_in_chunks_cost(d: Dims, *, chunk: int = 64) -> Cost:
    """The chunked form, whole squares of scores counted: more FLOPs than the recurrence, but as matrix products.

    A chunk of C positions takes 2 C C (M + H) within itself, C (C - 1) for the sums of scores, C (4 M H + 3 M + 2 H) to read
    and extend the state, C to add both weights, M H to join the state. Elements as for the recurrence.
    """
    M, H = d["M"], d["H"]
    flops = sum(
        2 * C * C * (M + H) + C * (C - 1) + C * (4 * M * H + 3 * M + 2 * H + 1) + M * H
        for C in (part.stop - part.start for part in chunks(d["T"], chunk))
    )
    whole = linear_cost(d)
    return Cost(d["B"] * d["N"] * flops, whole.elements_read, whole.elements_written)


def positive_total(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """A sum of feature maps, which are positive."""
    return np.abs(rng.standard_normal((d["B"], d["N"], d["M"]))) + 0.1


LINEAR = Op(
    reference=linear,
    cost=linear_cost,
    dims={"B": range(1, 3), "T": range(1, 79, 7), "N": range(1, 3), "M": range(1, 20, 3), "H": range(1, 20, 3)},
    shapes={
        "prefill 2k, 16 heads of 64": {"B": 1, "T": 2048, "N": 16, "M": 64, "H": 64},
        "prefill 8k, 8 heads of 128": {"B": 1, "T": 8192, "N": 8, "M": 128, "H": 128},
        "decode batch 32, 16 heads of 128": {"B": 32, "T": 1, "N": 16, "M": 128, "H": 128},
    },
    paper="arXiv:2006.16236",
    backward=linear_backward,
    draw={"total_BNM": positive_total},
    empty=("B", "T"),
    nonfinite=("q_BTNM",),
    powers={"B": 1, "T": 1, "N": 1, "M": 1, "H": 1},
)
