"""Root-mean-square layer normalization (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).

Axes: B batch, T position, D model width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def rms_norm(x_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    """Divide each position by its root mean square and scale each feature; return out_BTD.

        out = x / sqrt(mean(x^2) + eps) * weight

    `eps` is added inside the root (Llama: 1e-5; the paper has none). An infinity or a NaN makes its own element NaN; a NaN
    makes its whole position NaN, an infinity makes the others 0.

    Raises:
        ValueError: weight and x differ in D.

    >>> rms_norm(np.array([[[3.0, -3.0, 3.0]]]), np.array([1.0, 1.0, 2.0])).round(5)
    array([[[ 1., -1.,  2.]]])
    """
    return x_BTD * inverse_rms(x_BTD, eps=eps) * weight_D


def inverse_rms(x_BTD: np.ndarray, *, eps: float) -> np.ndarray:
    """Return scale_BT1 = 1 / sqrt(mean over D of x^2, plus eps)."""
    return 1 / np.sqrt(np.mean(x_BTD * x_BTD, axis=-1, keepdims=True) + eps)


def rms_norm_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Return (dx_BTD, dweight_D); dx loses its component along the normalized x."""
    scale_BT1 = inverse_rms(x_BTD, eps=eps)
    unit_BTD = x_BTD * scale_BT1
    dunit_BTD = dout_BTD * weight_D
    along_BT1 = np.mean(dunit_BTD * unit_BTD, axis=-1, keepdims=True)
    return scale_BT1 * (dunit_BTD - unit_BTD * along_BT1), np.sum(dout_BTD * unit_BTD, axis=(0, 1))


def rms_norm_cost(d: Dims) -> Cost:
    """Square, add and two multiplications per element; x and weight read once, out written once."""
    elements = d["B"] * d["T"] * d["D"]
    return Cost(flops=4 * elements, elements_read=elements + d["D"], elements_written=elements)


RMS_NORM = Op(
    reference=rms_norm,
    cost=rms_norm_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "D": range(1, 80)},
    shapes={
        "llama-3-8b 8k tokens": {"B": 1, "T": 8192, "D": 4096},
        "llama-3-8b decode batch 32": {"B": 32, "T": 1, "D": 4096},
    },
    paper="arXiv:1910.07467",
    backward=rms_norm_backward,
    options=({}, {"eps": 1e-5}),
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "D": 1},
)
