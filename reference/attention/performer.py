"""Performer: softmax attention through positive random features, FAVOR+ (Choromanski et al. 2020, arXiv:2009.14794, section 2).

Axes: B batch, T query position, S key position, N head, H head width, M random feature.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import causal_TS, require_keys
from llmlab.reference.op import Cost, Dims, Op


def features(x_BSNH: np.ndarray, projection_MH: np.ndarray, *, axes: tuple[int, ...] = (-1,)) -> np.ndarray:
    """Return phi_BSNM, whose products estimate exp(x . y / sqrt(H)) without bias; positive, so no sum of them is 0.

        phi(x) = exp(w_m . x' - |x'|^2 / 2) / sqrt(M),   x' = x / H^(1/4),   w_m ~ N(0, I)      (lemma 1, SM+)

    Scaled by exp(-max) over `axes`, which keeps the exponential finite; the scale leaves with the normaliser as long as all
    keys of a head share it.
    """
    scaled_BSNH = x_BSNH * x_BSNH.shape[-1] ** -0.25
    dots_BSNM = np.einsum("bsnh,mh->bsnm", scaled_BSNH, projection_MH)
    half_BSN1 = np.sum(scaled_BSNH * scaled_BSNH, axis=-1, keepdims=True) / 2
    peak_BSN1 = np.max(dots_BSNM, axis=axes, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):  # infinite queries: the NaN is the answer
        return np.exp(dots_BSNM - half_BSN1 - peak_BSN1) * len(projection_MH) ** -0.5


def performer(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, v_BSNH: np.ndarray, projection_MH: np.ndarray, *, causal: bool = False
) -> np.ndarray:
    """Attend in time linear in the text: sum phi(k) v' once, then multiply by phi(q); return out_BTNH.

        out_t = phi(q_t)' (sum_s phi(k_s) v_s') / phi(q_t)' sum_s phi(k_s),   s <= t if causal      (eq. 4; appendix B.1)

    Query t sits at position S - T + t. The projection's rows are orthogonal with the lengths of Gaussian vectors (section
    2.4), see `orthogonal_projection`; they are redrawn during training and get no gradient. Nothing is added to the features:
    the released code adds 1e-4 to each, which makes far keys visible (see the test). A NaN or infinity in a query stays in
    that query's row.

    Raises:
        ValueError: causal with more queries than keys (T > S).

    >>> one = np.ones((1, 3, 1, 2)); values = np.array([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1) * one
    >>> performer(one, one, values, np.eye(2)).round(12)[0, :, 0, 0]  # equal keys weigh the same
    array([3., 3., 3.])
    >>> performer(one, one, values, np.eye(2), causal=True).round(12)[0, :, 0, 0]
    array([1. , 1.5, 3. ])
    """
    T, S = q_BTNH.shape[1], k_BSNH.shape[1]
    queries_BTNM, keys_BSNM = features(q_BTNH, projection_MH), features(k_BSNH, projection_MH, axes=(1, 3))
    if not causal:
        state_BNMH = np.einsum("bsnm,bsnh->bnmh", keys_BSNM, v_BSNH)
        total_BNM = np.sum(keys_BSNM, axis=1)
        return (
            np.einsum("btnm,bnmh->btnh", queries_BTNM, state_BNMH)
            / np.einsum("btnm,bnm->btn", queries_BTNM, total_BNM)[..., None]
        )
    require_keys(T, S)
    B, _, N, H = q_BTNH.shape
    state_BNMH = np.zeros((B, N, len(projection_MH), H), dtype=q_BTNH.dtype)
    total_BNM = np.zeros((B, N, len(projection_MH)), dtype=q_BTNH.dtype)
    out_BTNH = np.empty_like(q_BTNH)
    for s in range(S):
        state_BNMH = state_BNMH + np.einsum("bnm,bnh->bnmh", keys_BSNM[:, s], v_BSNH[:, s])
        total_BNM = total_BNM + keys_BSNM[:, s]
        t = s - (S - T)
        if t >= 0:
            weight_BN = np.einsum("bnm,bnm->bn", queries_BTNM[:, t], total_BNM)
            out_BTNH[:, t] = np.einsum("bnm,bnmh->bnh", queries_BTNM[:, t], state_BNMH) / weight_BN[..., None]
    return out_BTNH


def orthogonal_projection(M: int, H: int, rng: np.random.Generator) -> np.ndarray:
    """Draw projection_MH: blocks of H orthogonal rows, each as long as a Gaussian vector of H numbers (section 2.4)."""
    blocks = []
    for _ in range(-(-M // H)):
        q_HH, r_HH = np.linalg.qr(rng.standard_normal((H, H)))
        blocks.append((q_HH * np.sign(np.diag(r_HH))).T)  # the routine's own signs are not random
    directions_MH = np.concatenate([*blocks, np.zeros((0, H))])[:M]
    return directions_MH * np.linalg.norm(rng.standard_normal((M, H)), axis=1, keepdims=True)


def performer_backward(
    dout_BTNH: np.ndarray,
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    projection_MH: np.ndarray,
    *,
    causal: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    """Return (dq_BTNH, dk_BSNH, dv_BSNH, None), written with the matrix of weights for the sake of reading.

    weights = phi(q) phi(k)',  out = weights v / sum weights,  dweights = (dout v' - dout . out) / sum weights
    """
    T, S = q_BTNH.shape[1], k_BSNH.shape[1]
    queries_BTNM, keys_BSNM = features(q_BTNH, projection_MH), features(k_BSNH, projection_MH, axes=(1, 3))
    seen_TS = causal_TS(T, S) if causal else np.ones((T, S), dtype=bool)
    weights_BNTS = np.einsum("btnm,bsnm->bnts", queries_BTNM, keys_BSNM) * seen_TS
    total_BNT1 = np.sum(weights_BNTS, axis=-1, keepdims=True)
    shares_BNTS = weights_BNTS / total_BNT1
    along_BNTS = np.einsum("btnh,bsnh->bnts", dout_BTNH, v_BSNH)
    drift_BNT1 = np.sum(along_BNTS * shares_BNTS, axis=-1, keepdims=True)
    dweights_BNTS = seen_TS * (along_BNTS - drift_BNT1) / total_BNT1
    dqueries_BTNM = np.einsum("bnts,bsnm->btnm", dweights_BNTS, keys_BSNM)
    dkeys_BSNM = np.einsum("bnts,btnm->bsnm", dweights_BNTS, queries_BTNM)
    return (
        _features_backward(dqueries_BTNM, q_BTNH, queries_BTNM, projection_MH),
        _features_backward(dkeys_BSNM, k_BSNH, keys_BSNM, projection_MH),
        np.einsum("bnts,btnh->bsnh", shares_BNTS, dout_BTNH),
        None,
    )


def _features_backward(dphi: np.ndarray, x_BSNH: np.ndarray, phi: np.ndarray, projection_MH: np.ndarray) -> np.ndarray:
    """dx' = sum_m dphi_m phi_m (w_m - x'); the peak cancels in the end and counts as a constant."""
    scale = x_BSNH.shape[-1] ** -0.25
    pulled_BSNM = dphi * phi
    toward_BSNH = np.einsum("bsnm,mh->bsnh", pulled_BSNM, projection_MH)
    return scale * (toward_BSNH - np.sum(pulled_BSNM, axis=-1, keepdims=True) * x_BSNH * scale)


def performer_cost(d: Dims) -> Cost:
    """Features of queries and keys, the sums over keys, their product with the queries and its normaliser; exponentials and
    the sum of the keys' features are not counted. Everything is read once.
    """
    heads = d["B"] * d["N"]
    return Cost(
        flops=2 * heads * d["M"] * (2 * d["H"] * (d["T"] + d["S"]) + d["T"]),
        elements_read=heads * d["H"] * (d["T"] + 2 * d["S"]) + d["M"] * d["H"],
        elements_written=heads * d["H"] * d["T"],
    )


def draw_projection(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Orthogonal rows."""
    return orthogonal_projection(d["M"], d["H"], rng)


PERFORMER = Op(
    reference=performer,
    cost=performer_cost,
    dims={"B": range(1, 3), "T": range(1, 6), "S": range(5, 9), "N": range(1, 4), "H": range(2, 20), "M": range(4, 24)},
    shapes={"performer 4k tokens, 256 features": {"B": 1, "T": 4096, "S": 4096, "N": 8, "H": 64, "M": 256}},
    paper="arXiv:2009.14794",
    backward=performer_backward,
    draw={"projection_MH": draw_projection},
    options=({}, {"causal": True}),
    empty=("B", "T"),
    nonfinite=("q_BTNH",),
    powers={"B": 1, "N": 1, "H": 1, "M": 1},
)
