"""Softmax cross-entropy with label smoothing, z-loss and ignored positions.

Label smoothing: Szegedy et al. 2015 (arXiv:1512.00567, section 7). z-loss: de Brébisson and Vincent 2016 (arXiv:1604.08859)
as in PaLM (arXiv:2204.02311, section 5). Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def cross_entropy(
    logits_BTV: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    """Return loss_BT, one number per position, in nats; 0 where the target is `ignore_index`.

        lse  = log sum exp logits
        loss = lse - target + a (target - mean logits) + z_loss lse^2,     target = logits[target], a = label_smoothing

    Training takes `mean_loss` of it. Positions are independent and targets are not shifted: align them first. A NaN or +inf
    logit makes its position's loss NaN; a position whose logits are all -inf has loss NaN.

    Raises:
        ValueError: a target outside 0 .. V-1 that is not `ignore_index`, or smoothing outside 0 .. 1.

    >>> two_or_none = np.array([[2, -100]])
    >>> (cross_entropy(np.zeros((1, 2, 4)), two_or_none) / np.log(2)).tolist()  # two bits, then nothing
    [[2.0, 0.0]]
    """
    safe_BT1, counted_BT = checked_targets(logits_BTV.shape[-1], targets_BT, label_smoothing, ignore_index)
    with np.errstate(invalid="ignore"):  # inf - inf: the NaN is the answer
        lse_BT = log_sum_exp(logits_BTV)
        target_BT = np.take_along_axis(logits_BTV, safe_BT1, -1)[..., 0]
        loss_BT = lse_BT - target_BT
        if label_smoothing:
            loss_BT = loss_BT + label_smoothing * (target_BT - np.mean(logits_BTV, axis=-1))
        if z_loss:
            loss_BT = loss_BT + z_loss * lse_BT * lse_BT
    return np.where(counted_BT, loss_BT, np.zeros_like(loss_BT))


def log_sum_exp(logits_BTV: np.ndarray) -> np.ndarray:
    """Return log sum exp over V, shifted by the maximum so that it never overflows."""
    peak_BT1 = np.max(logits_BTV, axis=-1, keepdims=True)
    return peak_BT1[..., 0] + np.log(np.sum(np.exp(logits_BTV - peak_BT1), axis=-1))


def mean_loss(loss_BT: np.ndarray, targets_BT: np.ndarray, *, ignore_index: int = -100) -> float:
    """Mean over the positions that count; 0 when none does."""
    counted = np.count_nonzero(targets_BT != ignore_index)
    return float(np.sum(loss_BT)) / max(int(counted), 1)


def checked_targets(
    vocabulary: int, targets_BT: np.ndarray, label_smoothing: float, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (targets_BT1 with 0 for ignored ones, counted_BT)."""
    counted_BT = targets_BT != ignore_index
    wrong = targets_BT[counted_BT & ((targets_BT < 0) | (targets_BT >= vocabulary))]
    if wrong.size:
        raise ValueError(f"target={wrong.flat[0]}: not in 0..{vocabulary - 1} and not ignore_index={ignore_index}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must be between 0 and 1")
    return np.where(counted_BT, targets_BT, 0)[..., None], counted_BT


def cross_entropy_backward(
    dloss_BT: np.ndarray,
    logits_BTV: np.ndarray,
    targets_BT: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> tuple[np.ndarray, None]:
    """Return (dlogits_BTV, None) = dloss ((1 + 2 z_loss lse) softmax - (1 - a) onehot - a / V); 0 where ignored."""
    V = logits_BTV.shape[-1]
    safe_BT1, counted_BT = checked_targets(V, targets_BT, label_smoothing, ignore_index)
    pull_BT1 = np.where(counted_BT, dloss_BT, 0)[..., None]
    push_BT1 = 1 + 2 * z_loss * log_sum_exp(logits_BTV)[..., None]
    dlogits_BTV = pull_BT1 * (push_BT1 * softmax(logits_BTV) - label_smoothing / V)
    at_target_BT1 = np.take_along_axis(dlogits_BTV, safe_BT1, -1) - (1 - label_smoothing) * pull_BT1
    np.put_along_axis(dlogits_BTV, safe_BT1, at_target_BT1, -1)
    return dlogits_BTV, None


def cross_entropy_cost(d: Dims) -> Cost:
    """Maximum, subtract, exp and add per logit; logits and targets read once, one loss written per position."""
    positions = d["B"] * d["T"]
    return Cost(flops=4 * positions * d["V"], elements_read=positions * (d["V"] + 1), elements_written=positions)


def draw_targets(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Targets uniform over the vocabulary, about one position in five ignored."""
    targets_BT = rng.integers(0, d["V"], (d["B"], d["T"]))
    return np.where(rng.random(targets_BT.shape) < 0.2, -100, targets_BT)


CROSS_ENTROPY = Op(
    reference=cross_entropy,
    cost=cross_entropy_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "V": range(1, 90)},
    shapes={
        "llama-2 4k tokens": {"B": 1, "T": 4096, "V": 32000},
        "llama-3 1k tokens": {"B": 1, "T": 1024, "V": 128256},
    },
    paper="arXiv:1512.00567",
    backward=cross_entropy_backward,
    draw={"targets_BT": draw_targets},
    options=({}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"label_smoothing": 0.3, "z_loss": 0.1}),
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "V": 1},
)
