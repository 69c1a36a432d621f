"""Multi-head scaled dot-product attention with its masks (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

Axes: B batch, T query position, S key position, N head, H head width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.attention._masked import causal_pairs, causal_TS, require_keys
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def mha(
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    keep_BS: np.ndarray | None = None,
    bias_NTS: np.ndarray | None = None,
    *,
    causal: bool = False,
) -> np.ndarray:
    """Attend every head to its own keys; return out_BTNH. Self-attention has T = S, cross-attention any S.

    keep is the padding mask: False hides that key from every query of its sequence. bias is added to the scores: a
    relative position bias, or an additive mask where -inf hides. Query t sits at position S - T + t when causal.

        out = softmax(q k' / sqrt(H) + bias) v        (eq. 1; bias as in Raffel et al. 2019, arXiv:1910.10683)

    A query that may see nothing gives zeros. A NaN or infinity in a query stays in that query's row.

    Raises:
        ValueError: causal, and there are more queries than keys (T > S).

    >>> q = np.zeros((1, 1, 1, 2)); k = np.zeros((1, 3, 1, 2)); v = np.array([[[[1.0, 0]], [[3, 0]], [[50, 0]]]])
    >>> mha(q, k, v, np.array([[True, True, False]])).ravel()
    array([2., 0.])
    >>> mha(q, k, v, np.array([[False, False, False]])).ravel()
    array([0., 0.])
    """
    weights_BNTS = _weights(q_BTNH, k_BSNH, keep_BS, bias_NTS, causal)
    return np.einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH)


def _weights(
    q_BTNH: np.ndarray, k_BSNH: np.ndarray, keep_BS: np.ndarray | None, bias_NTS: np.ndarray | None, causal: bool
) -> np.ndarray:
    T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
    S = k_BSNH.shape[1]
    scores_BNTS = np.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH) * H**-0.5
    if bias_NTS is not None:
        scores_BNTS = scores_BNTS + bias_NTS
    if keep_BS is not None:
        scores_BNTS = np.where(keep_BS[:, None, None, :], scores_BNTS, -np.inf)
    if causal:
        require_keys(T, S)
        scores_BNTS = np.where(causal_TS(T, S), scores_BNTS, -np.inf)
    return softmax(scores_BNTS)


def mha_backward(
    dout_BTNH: np.ndarray,
    q_BTNH: np.ndarray,
    k_BSNH: np.ndarray,
    v_BSNH: np.ndarray,
    keep_BS: np.ndarray | None = None,
    bias_NTS: np.ndarray | None = None,
    *,
    causal: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None, np.ndarray | None]:
    """Return (dq_BTNH, dk_BSNH, dv_BSNH, None, dbias_NTS); the bias, shared by the batch, sums over it."""
    scale = q_BTNH.shape[-1] ** -0.5
    weights_BNTS = _weights(q_BTNH, k_BSNH, keep_BS, bias_NTS, causal)
    dweights_BNTS = np.einsum("btnh,bsnh->bnts", dout_BTNH, v_BSNH)
    dscores_BNTS = weights_BNTS * (dweights_BNTS - np.sum(dweights_BNTS * weights_BNTS, axis=-1, keepdims=True))
    dq_BTNH = np.einsum("bnts,bsnh->btnh", dscores_BNTS, k_BSNH) * scale
    dk_BSNH = np.einsum("bnts,btnh->bsnh", dscores_BNTS, q_BTNH) * scale
    dv_BSNH = np.einsum("bnts,btnh->bsnh", weights_BNTS, dout_BTNH)
    dbias_NTS = None if bias_NTS is None else np.sum(dscores_BNTS, axis=0)
    return dq_BTNH, dk_BSNH, dv_BSNH, None, dbias_NTS


def mha_cost(d: Dims, *, causal: bool = False) -> Cost:
    """Both matmuls over all pairs (over the seen ones when causal), 2 FLOPs per multiply-add; exponentials are not counted.

    Pairs that the padding mask or the bias hides are counted: dense kernels compute them. All inputs, masks included, are
    read once and the result is written once.
    """
    pairs = causal_pairs(d["T"], d["S"]) if causal else d["T"] * d["S"]
    rows = d["B"] * d["N"] * d["H"]
    return Cost(
        flops=4 * rows * pairs,
        elements_read=rows * (d["T"] + 2 * d["S"]) + d["B"] * d["S"] + d["N"] * d["T"] * d["S"],
        elements_written=rows * d["T"],
    )


def padding_mask(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Sequences of random length in a padded batch, some of them with holes, some empty."""
    length_B1 = rng.integers(0, d["S"] + 1, size=(d["B"], 1))
    whole_B1 = rng.random((d["B"], 1)) < 0.5
    hole_BS = rng.random((d["B"], d["S"])) < 0.2
    return (whole_B1 | (np.arange(d["S"]) < length_B1)) & ~(hole_BS & ~whole_B1)


def position_bias(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """A learned bias with a tenth of the pairs hidden."""
    bias_NTS = rng.standard_normal((d["N"], d["T"], d["S"]))
    return np.where(rng.random(bias_NTS.shape) < 0.1, -np.inf, bias_NTS)


MHA = Op(
    reference=mha,
    cost=mha_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "S": range(5, 9), "N": range(1, 4), "H": range(1, 20)},
    shapes={
        "t5-base encoder 512 batch 4": {"B": 4, "T": 512, "S": 512, "N": 12, "H": 64},
        "whisper-large cross-attention": {"B": 1, "T": 448, "S": 1500, "N": 20, "H": 64},
    },
    paper="arXiv:1706.03762",
    backward=mha_backward,
    draw={"keep_BS": padding_mask, "bias_NTS": position_bias},
    options=({}, {"causal": True}),
    empty=("B", "T"),
    nonfinite=("q_BTNH",),
    powers={"B": 1, "T": 1, "S": 1, "N": 1, "H": 1},
)
