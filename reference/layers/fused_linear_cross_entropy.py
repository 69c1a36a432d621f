"""The output projection and its cross-entropy without ever holding all logits (Wijmans et al. 2024, arXiv:2411.09009).

Axes: B batch, T position, D model width, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.cross_entropy import cross_entropy, cross_entropy_backward, draw_targets
from llmlab.reference.op import Cost, Dims, Op


def fused_linear_cross_entropy(
    hidden_BTD: np.ndarray,
    weight_VD: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    """Return loss_BT of logits = hidden weight', as `layers.cross_entropy` defines it.

    One batch row at a time: T x V logits are alive instead of B x T x V. NaN and infinities in `hidden` make their
    position's loss NaN; a NaN in `weight`, every position's.

    Raises:
        ValueError: a target outside 0 .. V-1 that is not `ignore_index`, or smoothing outside 0 .. 1.

    >>> hidden, weight = np.array([[[1.0, 0.0]]]), np.log([[3.0, 1.0], [1.0, 1.0]])
    >>> np.exp(-fused_linear_cross_entropy(hidden, weight, np.array([[0]]))).round(6)  # 3 / (3 + 1)
    array([[0.75]])
    """
    chosen = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
    loss_BT = np.zeros(hidden_BTD.shape[:2], hidden_BTD.dtype)
    for b, hidden_TD in enumerate(hidden_BTD):
        logits_TV = np.einsum("td,vd->tv", hidden_TD, weight_VD)
        loss_BT[b] = cross_entropy(logits_TV[None], targets_BT[b : b + 1], **chosen)[0]  # type: ignore[arg-type]
    return loss_BT


def fused_linear_cross_entropy_backward(
    dloss_BT: np.ndarray,
    hidden_BTD: np.ndarray,
    weight_VD: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> tuple[np.ndarray, np.ndarray, None]:
    """Return (dhidden_BTD, dweight_VD, None), the logits formed again one batch row at a time."""
    chosen = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
    dhidden_BTD, dweight_VD = np.zeros_like(hidden_BTD), np.zeros_like(weight_VD)
    for b, hidden_TD in enumerate(hidden_BTD):
        logits_TV = np.einsum("td,vd->tv", hidden_TD, weight_VD)
        row = np.s_[b : b + 1]
        dlogits_1TV, _ = cross_entropy_backward(dloss_BT[row], logits_TV[None], targets_BT[row], **chosen)  # type: ignore[arg-type]
        dhidden_BTD[b] = np.einsum("tv,vd->td", dlogits_1TV[0], weight_VD)
        dweight_VD += np.einsum("tv,td->vd", dlogits_1TV[0], hidden_TD)
    return dhidden_BTD, dweight_VD, None


def fused_linear_cross_entropy_cost(d: Dims) -> Cost:
    """The projection (2 FLOPs per multiply-add) and 4 FLOPs per logit; the logits never travel."""
    positions = d["B"] * d["T"]
    return Cost(
        flops=positions * d["V"] * (2 * d["D"] + 4),
        elements_read=positions * (d["D"] + 1) + d["V"] * d["D"],
        elements_written=positions,
    )


FUSED_LINEAR_CROSS_ENTROPY = Op(
    reference=fused_linear_cross_entropy,
    cost=fused_linear_cross_entropy_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "D": range(1, 20), "V": range(1, 60)},
    shapes={
        "tinyllama-1.1b 1k tokens": {"B": 1, "T": 1024, "D": 2048, "V": 32000},
        "gpt-2 1k tokens": {"B": 1, "T": 1024, "D": 768, "V": 50257},
    },
    paper="arXiv:2411.09009",
    backward=fused_linear_cross_entropy_backward,
    draw={"targets_BT": draw_targets},
    options=({}, {"label_smoothing": 0.3, "z_loss": 0.01}),
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "D": 1, "V": 1},
)
