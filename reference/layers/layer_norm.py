"""Layer normalization (Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 3).

Axes: B batch, T position, D model width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def layer_norm(x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, *, eps: float = 1e-5) -> np.ndarray:
    """Shift and scale each position to mean 0 and variance 1, then apply weight and bias; return out_BTD.

        out = (x - mean x) / sqrt(var x + eps) * weight + bias      (var divides by D)

    The variance is the mean square of the centred values, not a difference of moments. A NaN or an infinity makes its whole
    position NaN.

    Raises:
        ValueError: weight or bias and x differ in D.

    >>> layer_norm(np.array([[[1.0, 3.0]]]), np.ones(2), np.zeros(2), eps=0.0)
    array([[[-1.,  1.]]])
    """
    unit_BTD, _ = standardized(x_BTD, eps=eps)
    return unit_BTD * weight_D + bias_D


def standardized(x_BTD: np.ndarray, *, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit_BTD, scale_BT1) with unit = (x - mean) scale and scale = 1 / sqrt(var + eps)."""
    with np.errstate(invalid="ignore"):  # inf - inf: the NaN is the answer
        centred_BTD = x_BTD - np.mean(x_BTD, axis=-1, keepdims=True)
        scale_BT1 = 1 / np.sqrt(np.mean(centred_BTD * centred_BTD, axis=-1, keepdims=True) + eps)
        return centred_BTD * scale_BT1, scale_BT1


def layer_norm_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, *, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx_BTD, dweight_D, dbias_D); dx loses its mean and its component along the standardized x."""
    unit_BTD, scale_BT1 = standardized(x_BTD, eps=eps)
    dunit_BTD = dout_BTD * weight_D
    mean_BT1 = np.mean(dunit_BTD, axis=-1, keepdims=True)
    along_BT1 = np.mean(dunit_BTD * unit_BTD, axis=-1, keepdims=True)
    dx_BTD = scale_BT1 * (dunit_BTD - mean_BT1 - unit_BTD * along_BT1)
    return dx_BTD, np.sum(dout_BTD * unit_BTD, axis=(0, 1)), np.sum(dout_BTD, axis=(0, 1))


def layer_norm_cost(d: Dims) -> Cost:
    """Mean (1), centre (1), variance (2), scale, weight and bias (3) per element; x read once, out written once."""
    elements = d["B"] * d["T"] * d["D"]
    return Cost(flops=7 * elements, elements_read=elements + 2 * d["D"], elements_written=elements)


LAYER_NORM = Op(
    reference=layer_norm,
    cost=layer_norm_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "D": range(2, 80)},
    shapes={
        "gpt-3-175b 2k tokens": {"B": 1, "T": 2048, "D": 12288},
        "gpt-2 batch 8 of 1k tokens": {"B": 8, "T": 1024, "D": 768},
    },
    paper="arXiv:1607.06450",
    backward=layer_norm_backward,
    options=({}, {"eps": 1e-12}),
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "D": 1},
)
