"""Position interpolation (Chen et al. 2023, arXiv:2306.15595, section 2.3).

Axes: B batch, T position, N head, H head width (even), R = H/2 rotated pairs.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Op
from llmlab.reference.positions._stretched import QUERIES_8K, STRETCHED, require_stretch
from llmlab.reference.positions.rope import inverse_frequencies, rope, rope_backward


def linear_scaling(head_width: int, *, theta: float = 10000.0, factor: float = 4.0) -> tuple[np.ndarray, float]:
    """Return (frequencies_R, 1.0): every angular speed divided by `factor`.

    Raises:
        ValueError: an odd head width, or a factor below 1.

    >>> linear_scaling(4, theta=100.0, factor=2.0)
    (array([0.5 , 0.05]), 1.0)
    """
    require_stretch(factor)
    return inverse_frequencies(head_width, theta) / factor, 1.0


def rope_linear(x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0, factor: float = 4.0) -> np.ndarray:
    """Turn half-split pair r of every head by (position / factor) * frequency_r; return out_BTNH.

        f'(x, m) = f(x, m L / L'),   factor = L' / L      (eq. 3)

    Positions up to L' are squeezed into the L that the model has seen; neighbours become harder to tell apart.

    Raises:
        ValueError: an odd head width, or a factor below 1.

    >>> x = np.array([[[[3.0, 4.0]]]])
    >>> np.allclose(rope_linear(x, np.array([[8]]), factor=4.0), rope(x, np.array([[2]])))
    True
    """
    frequencies_R, _ = linear_scaling(x_BTNH.shape[-1], theta=theta, factor=factor)
    return rope(x_BTNH, positions_BT, frequencies=frequencies_R)


def rope_linear_backward(
    dout_BTNH: np.ndarray, x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0, factor: float = 4.0
) -> tuple[np.ndarray, None]:
    """Return (dx_BTNH, None): the gradient turned back by the same angle."""
    frequencies_R, _ = linear_scaling(x_BTNH.shape[-1], theta=theta, factor=factor)
    return rope_backward(dout_BTNH, x_BTNH, positions_BT, frequencies=frequencies_R)


ROPE_LINEAR = Op(
    reference=rope_linear,
    shapes={"llama-7b stretched to 8k tokens": QUERIES_8K},
    paper="arXiv:2306.15595",
    backward=rope_linear_backward,
    options=({}, {"factor": 16.0, "theta": 500000.0}),
    **STRETCHED,
)
