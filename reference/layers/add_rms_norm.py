"""Residual addition and RMS normalization in one pass over memory (arXiv:1910.07467, eq. 4, as pre-norm decoders chain them).

Axes: B batch, T position, D model width.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.rms_norm import rms_norm, rms_norm_backward
from llmlab.reference.op import Cost, Dims, Op


def add_rms_norm(
    x_BTD: np.ndarray, residual_BTD: np.ndarray, weight_D: np.ndarray, *, eps: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Add a block's output to the residual stream and normalize the sum; return (normed_BTD, stream_BTD).

        stream = residual + x;    normed = rms_norm(stream, weight)

    The stream is rounded to x's dtype before it is squared, as two separate layers would. NaN and infinities spread as in
    `rms_norm`.

    Raises:
        ValueError: x, residual and weight differ in D.

    >>> normed, stream = add_rms_norm(np.full((1, 1, 2), 3.0), np.full((1, 1, 2), 1.0), np.ones(2))
    >>> normed.round(6).tolist(), stream.tolist()
    ([[[1.0, 1.0]]], [[[4.0, 4.0]]])
    """
    stream_BTD = residual_BTD + x_BTD
    return rms_norm(stream_BTD, weight_D, eps=eps), stream_BTD


def add_rms_norm_backward(
    dnormed_BTD: np.ndarray,
    dstream_BTD: np.ndarray,
    x_BTD: np.ndarray,
    residual_BTD: np.ndarray,
    weight_D: np.ndarray,
    *,
    eps: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (dx_BTD, dresidual_BTD, dweight_D): both addends receive the same gradient."""
    through_BTD, dweight_D = rms_norm_backward(dnormed_BTD, residual_BTD + x_BTD, weight_D, eps=eps)
    dsum_BTD = dstream_BTD + through_BTD
    return dsum_BTD, dsum_BTD.copy(), dweight_D


def add_rms_norm_cost(d: Dims) -> Cost:
    """One addition more per element than RMS normalization; two arrays in, two out, instead of three in and two out."""
    elements = d["B"] * d["T"] * d["D"]
    return Cost(flops=5 * elements, elements_read=2 * elements + d["D"], elements_written=2 * elements)


ADD_RMS_NORM = Op(
    reference=add_rms_norm,
    cost=add_rms_norm_cost,
    dims={"B": range(1, 4), "T": range(1, 6), "D": range(1, 80)},
    shapes={
        "llama-3-8b 8k tokens": {"B": 1, "T": 8192, "D": 4096},
        "llama-3-8b decode batch 32": {"B": 32, "T": 1, "D": 4096},
    },
    paper="arXiv:1910.07467",
    backward=add_rms_norm_backward,
    options=({}, {"eps": 1e-5}),
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "D": 1},
)
