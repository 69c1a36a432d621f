"""Sinusoidal positions (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

Axes: B batch, T position, D model width (even), R = D/2 wavelengths.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op
from llmlab.reference.positions._stretched import draw_early_positions
from llmlab.reference.positions.rope import inverse_frequencies


def encoding(positions_BT: np.ndarray, width: int, *, theta: float = 10000.0) -> np.ndarray:
    """Return the encoding_BTD that `sinusoidal` adds: sine and cosine of each wavelength side by side (float64)."""
    angle_BTR = np.einsum("bt,r->btr", positions_BT, inverse_frequencies(width, theta))
    encoding_BTD = np.empty((*positions_BT.shape, width))
    encoding_BTD[..., 0::2], encoding_BTD[..., 1::2] = np.sin(angle_BTR), np.cos(angle_BTR)
    return encoding_BTD


def sinusoidal(x_BTD: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0) -> np.ndarray:
    """Add to every token the sines and cosines of its position; return out_BTD.

        PE(pos, 2r) = sin(pos / theta^(2r/D)),   PE(pos, 2r + 1) = cos(pos / theta^(2r/D))

    Sine and cosine of one wavelength are neighbours, as in the paper. Marian and CTRL put all sines before all cosines: the
    same numbers in another order of columns. Whisper and tensor2tensor space the wavelengths by theta^(1/(D/2 - 1)), so that
    the slowest one is theta itself: other numbers. The angle is formed in float64, the result in x's dtype.

    Raises:
        ValueError: an odd width, or theta not above 0.

    >>> sinusoidal(np.zeros((1, 2, 4)), np.array([[0, 1]]), theta=100.0).round(3)  # one radian and a tenth per position
    array([[[0.   , 1.   , 0.   , 1.   ],
            [0.841, 0.54 , 0.1  , 0.995]]])
    """
    return x_BTD + encoding(positions_BT, x_BTD.shape[-1], theta=theta).astype(x_BTD.dtype)


def sinusoidal_backward(
    dout_BTD: np.ndarray, x_BTD: np.ndarray, positions_BT: np.ndarray, *, theta: float = 10000.0
) -> tuple[np.ndarray, None]:
    """Return (dx_BTD, None): the encoding is a constant."""
    return dout_BTD.copy(), None


def sinusoidal_cost(d: Dims) -> Cost:
    """One addition per element; sines and cosines, shared by the layers and by most of a batch, are left out."""
    elements = d["B"] * d["T"] * d["D"]
    return Cost(flops=elements, elements_read=elements + d["B"] * d["T"], elements_written=elements)


SINUSOIDAL = Op(
    reference=sinusoidal,
    cost=sinusoidal_cost,
    dims={"B": range(1, 3), "T": range(1, 8), "R": range(1, 12)},
    derived={"D": lambda d: 2 * d["R"]},
    shapes={"transformer base, batch 32 of 512 tokens": {"B": 32, "T": 512, "R": 256}},
    paper="arXiv:1706.03762",
    backward=sinusoidal_backward,
    draw={"positions_BT": draw_early_positions},
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "R": 1},
)
