"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.2).

Axes: B batch, T position, N head, H head width (even), R = H/2 rotated pairs.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def inverse_frequencies(head_width: int, theta: float = 10000.0) -> np.ndarray:
    """Return the R = head_width / 2 angular speeds theta ** (-2r / head_width), in radians per position (float64).

    Raises:
        ValueError: an odd or negative head width, or theta not above 0.

    >>> inverse_frequencies(4, theta=100.0)
    array([1. , 0.1])
    """
    if head_width % 2 or head_width < 0:
        raise ValueError(f"head_width={head_width}: pairs need an even, non-negative width")
    if not theta > 0:
        raise ValueError(f"theta={theta}: must be above 0")
    return theta ** (-np.arange(0, head_width, 2) / max(head_width, 1))


def rotate_pairs(x_BTNH: np.ndarray, cos_BTR: np.ndarray, sin_BTR: np.ndarray, *, interleaved: bool = False) -> np.ndarray:
    """Turn pair r of every head by the angle whose cosine and sine are given; return out_BTNH.

    Half-split pairs are (r, r + H/2), as Llama's released Hugging Face weights use; interleaved ones are (2r, 2r + 1), as
    in the paper. A permutation of the head's columns turns one into the other.

    >>> rotate_pairs(np.array([[[[1.0, 2.0]]]]), np.zeros((1, 1, 1)), np.ones((1, 1, 1))).ravel()  # a quarter turn
    array([-2.,  1.])
    """
    R = x_BTNH.shape[-1] // 2
    even, odd = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :R], np.s_[..., R:])
    cos_BT1R, sin_BT1R = cos_BTR[:, :, None].astype(x_BTNH.dtype), sin_BTR[:, :, None].astype(x_BTNH.dtype)
    out_BTNH = np.empty_like(x_BTNH)
    out_BTNH[even] = x_BTNH[even] * cos_BT1R - x_BTNH[odd] * sin_BT1R
    out_BTNH[odd] = x_BTNH[odd] * cos_BT1R + x_BTNH[even] * sin_BT1R
    return out_BTNH


def rope(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    frequencies: np.ndarray | None = None,
) -> np.ndarray:
    """Turn pair r of every head by the angle position * frequency_r; return out_BTNH.

        (x_a, x_b) -> (x_a cos - x_b sin, x_b cos + x_a sin),  angle = position * theta^(-2r/H)     (eq. 34)

    Angles, sines and cosines are formed in float64 and then rounded to x's dtype. `frequencies`, R numbers, replaces
    theta's (scaled variants such as `llama3_frequencies` make them). `interleaved` chooses the pairs, see `rotate_pairs`.

    Raises:
        ValueError: an odd head width, theta not above 0, or not R frequencies.

    >>> x = np.array([[[[3.0, 4.0]], [[3.0, 4.0]]]])
    >>> rope(x, np.array([[0, 1]])).round(3).tolist()  # position 0 stays, position 1 turns by one radian
    [[[[3.0, 4.0]], [[-1.745, 4.686]]]]
    """
    frequencies_R = inverse_frequencies(x_BTNH.shape[-1], theta) if frequencies is None else np.asarray(frequencies)
    if 2 * frequencies_R.size != x_BTNH.shape[-1]:
        raise ValueError(f"{frequencies_R.size} frequencies do not make H={x_BTNH.shape[-1]} a head of pairs")
    angle_BTR = np.einsum("bt,r->btr", positions_BT, frequencies_R)
    return rotate_pairs(x_BTNH, np.cos(angle_BTR), np.sin(angle_BTR), interleaved=interleaved)


def rope_backward(
    dout_BTNH: np.ndarray,
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    frequencies: np.ndarray | None = None,
) -> tuple[np.ndarray, None]:
    """Return (dx_BTNH, None): the rotation is orthogonal, so the gradient is turned back by the same angle."""
    dx_BTNH = rope(dout_BTNH, -positions_BT, theta=theta, interleaved=interleaved, frequencies=frequencies)
    return dx_BTNH, None


def rope_cost(d: Dims) -> Cost:
    """Four multiplications and two additions per pair and head; sines and cosines, shared by the heads, are left out."""
    elements = d["B"] * d["T"] * d["N"] * d["H"]
    return Cost(flops=3 * elements, elements_read=elements + d["B"] * d["T"], elements_written=elements)


def draw_positions(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Positions as batches have them: each sequence counts up by one from its own start."""
    return rng.integers(0, 4096, (d["B"], 1)) + np.arange(d["T"])


ROPE = Op(
    reference=rope,
    cost=rope_cost,
    dims={"B": range(1, 3), "T": range(1, 7), "N": range(1, 4), "R": range(1, 9)},
    derived={"H": lambda d: 2 * d["R"]},
    shapes={
        "llama-3-8b queries 8k tokens": {"B": 1, "T": 8192, "N": 32, "R": 64},
        "2k tokens, 32 heads of 128": {"B": 1, "T": 2048, "N": 32, "R": 64},
    },
    paper="arXiv:2104.09864",
    backward=rope_backward,
    draw={"positions_BT": draw_positions},
    options=({}, {"interleaved": True}, {"theta": 500000.0}),
    empty=("B", "T"),
    powers={"B": 1, "T": 1, "N": 1, "R": 1},
)
