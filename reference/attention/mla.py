"""Multi-head latent attention (DeepSeek-V2, Liu et al. 2024, arXiv:2405.04434, section 2.1; appendix C).

Axes: B batch, T query position, S key position, N head, H width of a head's part without rotation, R width of the rotated
part, L latent width, V value width of a head.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import attend_backward, causal_pairs, causal_TS, require_keys
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def mla(
    q_BTNH: np.ndarray,
    q_rope_BTNR: np.ndarray,
    latent_BSL: np.ndarray,
    k_rope_BSR: np.ndarray,
    up_k_NHL: np.ndarray,
    up_v_NVL: np.ndarray,
    *,
    causal: bool = True,
) -> np.ndarray:
    """Attend with keys and values that every head expands from one shared latent; return out_BTNV.

        k = W_UK c,  v = W_UV c                                                    (eq. 42, 45)
        out = softmax((q . k + q_rope . k_rope) / sqrt(H + R)) v                   (eq. 46; both parts count in the scale)

    Only the latent c and the rotated key, which all heads share, are cached: L + R numbers per token and layer. Rotation is
    done before (it cannot pass through W_UK, hence the separate part); query t sits at position S - T + t. This is the
    expanded form, for training and prefill; `mla_absorbed` is the same map for decoding. A NaN or infinity in a query stays
    in that query's row; an infinity in q is NaN once it is absorbed (W_UK has both signs).

    Raises:
        ValueError: causal with more queries than keys (T > S).

    >>> q = np.zeros((1, 1, 1, 1)); latent = np.array([[[1.0], [3.0]]]); up = np.ones((1, 1, 1))
    >>> mla(q, q, latent, latent, up, 5 * up).ravel()
    array([10.])
    """
    k_BSNH = np.einsum("bsl,nhl->bsnh", latent_BSL, up_k_NHL)
    v_BSNV = np.einsum("bsl,nvl->bsnv", latent_BSL, up_v_NVL)
    scores_BNTS = np.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH) + np.einsum("btnr,bsr->bnts", q_rope_BTNR, k_rope_BSR)
    weights_BNTS = _weights(scores_BNTS, q_BTNH.shape[3] + q_rope_BTNR.shape[3], causal)
    return np.einsum("bnts,bsnv->btnv", weights_BNTS, v_BSNV)


def mla_absorbed(
    q_BTNH: np.ndarray,
    q_rope_BTNR: np.ndarray,
    latent_BSL: np.ndarray,
    k_rope_BSR: np.ndarray,
    up_k_NHL: np.ndarray,
    up_v_NVL: np.ndarray,
    *,
    causal: bool = True,
) -> np.ndarray:
    """Return `mla`'s out_BTNV without expanding a key: W_UK is absorbed into the query, W_UV into the output.

        q . (W_UK c) = (W_UK' q) . c,   sum_s w_s (W_UV c_s) = W_UV (sum_s w_s c_s)        (section 2.1.2)

    All heads now read the same keys and values, the latents: multi-query attention of width L + R.
    """
    q_latent_BTNL = np.einsum("btnh,nhl->btnl", q_BTNH, up_k_NHL)
    scores_BNTS = np.einsum("btnl,bsl->bnts", q_latent_BTNL, latent_BSL)
    scores_BNTS = scores_BNTS + np.einsum("btnr,bsr->bnts", q_rope_BTNR, k_rope_BSR)
    weights_BNTS = _weights(scores_BNTS, q_BTNH.shape[3] + q_rope_BTNR.shape[3], causal)
    mixed_BTNL = np.einsum("bnts,bsl->btnl", weights_BNTS, latent_BSL)
    return np.einsum("btnl,nvl->btnv", mixed_BTNL, up_v_NVL)


def _weights(scores_BNTS: np.ndarray, width: int, causal: bool) -> np.ndarray:
    T, S = scores_BNTS.shape[2:]
    scores_BNTS = scores_BNTS * width**-0.5
    if causal:
        require_keys(T, S)
        scores_BNTS = np.where(causal_TS(T, S), scores_BNTS, -np.inf)
    return softmax(scores_BNTS)


def mla_backward(
    dout_BTNV: np.ndarray,
    q_BTNH: np.ndarray,
    q_rope_BTNR: np.ndarray,
    latent_BSL: np.ndarray,
    k_rope_BSR: np.ndarray,
    up_k_NHL: np.ndarray,
    up_v_NVL: np.ndarray,
    *,
    causal: bool = True,
) -> tuple[np.ndarray, ...]:
    """Return the gradients of the six inputs; the latent gathers those of every head's keys and values."""
    B, T, N, H = q_BTNH.shape
    S = latent_BSL.shape[1]
    k_BSNH = np.einsum("bsl,nhl->bsnh", latent_BSL, up_k_NHL)
    v_BSNV = np.einsum("bsl,nvl->bsnv", latent_BSL, up_v_NVL)
    queries = np.concatenate([q_BTNH, q_rope_BTNR], axis=-1)
    shared_BSNR = np.broadcast_to(k_rope_BSR[:, :, None], (B, S, N, k_rope_BSR.shape[2]))
    keys = np.concatenate([k_BSNH, shared_BSNR], axis=-1)
    seen_TS = causal_TS(T, S) if causal else np.ones((T, S), dtype=bool)
    dqueries, dkeys, dv_BSNV = attend_backward(dout_BTNV[..., None, :], queries[..., None, :], keys, v_BSNV, seen_TS)
    dq_BTNH, dq_rope_BTNR = dqueries[..., 0, :H], dqueries[..., 0, H:]
    dk_BSNH, dk_rope_BSR = dkeys[..., :H], dkeys[..., H:].sum(axis=2)
    dlatent_BSL = np.einsum("bsnh,nhl->bsl", dk_BSNH, up_k_NHL) + np.einsum("bsnv,nvl->bsl", dv_BSNV, up_v_NVL)
    dup_k_NHL = np.einsum("bsnh,bsl->nhl", dk_BSNH, latent_BSL)
    dup_v_NVL = np.einsum("bsnv,bsl->nvl", dv_BSNV, latent_BSL)
    return dq_BTNH, dq_rope_BTNR, dlatent_BSL, dk_rope_BSR, dup_k_NHL, dup_v_NVL


def expanded_flops(d: Dims, *, causal: bool = True) -> int:
    """Every key and value once from its latent, then attention of width H + R and V."""
    pairs = causal_pairs(d["T"], d["S"]) if causal else d["T"] * d["S"]
    return 2 * d["B"] * d["N"] * (d["S"] * d["L"] * (d["H"] + d["V"]) + pairs * (d["H"] + d["R"] + d["V"]))


def absorbed_flops(d: Dims, *, causal: bool = True) -> int:
    """Every query into the latent space and every result out of it, attention of width L + R and L between."""
    pairs = causal_pairs(d["T"], d["S"]) if causal else d["T"] * d["S"]
    return 2 * d["B"] * d["N"] * (d["T"] * d["L"] * (d["H"] + d["V"]) + pairs * (2 * d["L"] + d["R"]))


def mla_cost(d: Dims, *, causal: bool = True) -> Cost:
    """The FLOPs of the cheaper form: absorbed for few queries, expanded for many. Everything is read once; keys and values of
    the expanded form are not counted as moved.
    """
    heads = d["B"] * d["T"] * d["N"]
    return Cost(
        flops=min(expanded_flops(d, causal=causal), absorbed_flops(d, causal=causal)),
        elements_read=heads * (d["H"] + d["R"]) + d["B"] * d["S"] * (d["L"] + d["R"]) + d["N"] * d["L"] * (d["H"] + d["V"]),
        elements_written=heads * d["V"],
    )


MLA = Op(
    reference=mla,
    cost=mla_cost,
    dims={
        "B": range(1, 3),
        "T": range(1, 6),
        "S": range(5, 9),
        "N": range(1, 4),
        "H": range(1, 10),
        "R": range(1, 6),
        "L": range(1, 20),
        "V": range(1, 14),
    },
    shapes={
        "deepseek-v3 decode 4k batch 8": {"B": 8, "T": 1, "S": 4096, "N": 128, "H": 128, "R": 64, "L": 512, "V": 128},
        "deepseek-v2-lite prefill 1k": {"B": 1, "T": 1024, "S": 1024, "N": 16, "H": 128, "R": 64, "L": 512, "V": 128},
    },
    paper="arXiv:2405.04434",
    backward=mla_backward,
    options=({}, {"causal": False}),
    empty=("B", "T"),
    nonfinite=("q_rope_BTNR",),
    powers={"B": 1, "N": 1},
)
