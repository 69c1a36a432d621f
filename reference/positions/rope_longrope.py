"""LongRoPE: a searched factor per pair (Ding et al. 2024, arXiv:2402.13753, section 3.1).

Axes: B batch, T position, N head, H head width (even), R = H/2 rotated pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmlab.reference.op import Cost, Dims, Op
from llmlab.reference.positions._stretched import draw_early_positions
from llmlab.reference.positions.rope import inverse_frequencies, rope_cost, rotate_pairs


def longrope_scaling(
    head_width: int,
    *,
    length: int,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    original_max_position_embeddings: int,
    theta: float = 10000.0,
    max_position_embeddings: int | None = None,
    factor: float | None = None,
    attention_factor: float | None = None,
) -> tuple[np.ndarray, float]:
    """Return (frequencies_R, attention_factor) for a text of `length` tokens, as the released models have it.

    Speeds are divided by the short factors while the text fits the original context and by the long ones beyond; the switch
    is for all positions, so keys rotated before it do not fit those after. The attention factor is always the stretched one:

        sqrt(1 + ln(factor) / ln(original context)),   factor = max / original context unless given, 1 where it is at most 1

    Raises:
        ValueError: not R factors, a factor not above 0, or neither `factor` nor `max_position_embeddings`.

    >>> sizes = {"short_factor": [1, 1], "long_factor": [1, 5], "original_max_position_embeddings": 16, "factor": 16.0}
    >>> [longrope_scaling(4, length=n, theta=100.0, **sizes)[0].tolist() for n in (16, 17)]
    [[1.0, 0.1], [1.0, 0.02]]
    >>> longrope_scaling(4, length=1, **sizes)[1] == math.sqrt(2)
    True
    """
    chosen = np.asarray(long_factor if length > original_max_position_embeddings else short_factor, np.float64)
    if attention_factor is None:
        if factor is None and max_position_embeddings is None:
            raise ValueError("factor=None and max_position_embeddings=None: the attention factor needs one of them")
        stretch = factor if factor is not None else (max_position_embeddings or 0) / original_max_position_embeddings
        attention_factor = math.sqrt(1 + math.log(stretch) / math.log(original_max_position_embeddings)) if stretch > 1 else 1.0
    return inverse_frequencies(head_width, theta) / _checked(chosen, head_width), attention_factor


def _checked(factor_R: np.ndarray, head_width: int) -> np.ndarray:
    if 2 * factor_R.size != head_width:
        raise ValueError(f"{factor_R.size} factors for H={head_width}: one per pair")
    if not np.all(factor_R > 0):
        raise ValueError(f"factor={factor_R.min()}: must be above 0")
    return factor_R


def rope_longrope(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    factor_R: np.ndarray,
    *,
    theta: float = 10000.0,
    first_scaled: int = 0,
    attention_factor: float = 1.0,
) -> np.ndarray:
    """Turn half-split pair r of every head by position * frequency_r / factor_r, early positions unscaled; return out_BTNH.

        angle = position * theta^(-2r/H) * I,   I = 1 where position < first_scaled, else 1 / factor_r      (eq. 3)

    The first tokens, which attention leans on, keep their angles; released models (Phi-3) have first_scaled = 0 and multiply
    by an attention factor, see `longrope_scaling`. `factor_R` is found by search and gets no gradient.

    Raises:
        ValueError: an odd head width, not R factors, or a factor not above 0.

    >>> x = np.array([[[[3.0, 4.0]], [[3.0, 4.0]]]])
    >>> rope_longrope(x, np.array([[0, 1]]), np.array([2.0]), theta=1.0, first_scaled=2).round(3).tolist()
    [[[[3.0, 4.0]], [[-1.745, 4.686]]]]
    """
    cos_BTR, sin_BTR = _turns(positions_BT, factor_R, x_BTNH.shape[-1], theta, first_scaled)
    return rotate_pairs(x_BTNH, attention_factor * cos_BTR, attention_factor * sin_BTR)


def _turns(
    positions_BT: np.ndarray, factor_R: np.ndarray, head_width: int, theta: float, first_scaled: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (cos_BTR, sin_BTR) of the angles, formed in float64."""
    scaled_BT1 = (positions_BT >= first_scaled)[..., None]
    divisor_BTR = np.where(scaled_BT1, _checked(factor_R.astype(np.float64), head_width), 1.0)
    angle_BTR = positions_BT[..., None] * inverse_frequencies(head_width, theta) / divisor_BTR
    return np.cos(angle_BTR), np.sin(angle_BTR)


def rope_longrope_backward(
    dout_BTNH: np.ndarray,
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    factor_R: np.ndarray,
    *,
    theta: float = 10000.0,
    first_scaled: int = 0,
    attention_factor: float = 1.0,
) -> tuple[np.ndarray, None, None]:
    """Return (dx_BTNH, None, None): the gradient turned back by the same angle and scaled by the same factor."""
    cos_BTR, sin_BTR = _turns(positions_BT, factor_R, x_BTNH.shape[-1], theta, first_scaled)
    return rotate_pairs(dout_BTNH, attention_factor * cos_BTR, -attention_factor * sin_BTR), None, None


def longrope_cost(d: Dims) -> Cost:
    """The rotation's, and the factors read once."""
    return rope_cost(d) + Cost(flops=0, elements_read=d["R"], elements_written=0)


def draw_factors(d: Dims, rng: np.random.Generator) -> np.ndarray:
    """Factors that grow from near 1 to near 32, as searched ones do."""
    return np.sort(1 + 31 * rng.random(d["R"]))


ROPE_LONGROPE = Op(
    reference=rope_longrope,
    cost=longrope_cost,
    dims={"B": range(1, 3), "T": range(1, 7), "N": range(1, 4), "R": range(1, 9)},
    derived={"H": lambda d: 2 * d["R"]},
    shapes={"phi-3-mini-128k 8k tokens": {"B": 1, "T": 8192, "N": 32, "R": 48}},
    paper="arXiv:2402.13753",
    backward=rope_longrope_backward,
    draw={"positions_BT": draw_early_positions, "factor_R": draw_factors},
    options=({}, {"first_scaled": 8}, {"theta": 500000.0, "attention_factor": 1.19}),
    empty=("B", "T"),
    nonfinite=("x_BTNH",),
    powers={"B": 1, "T": 1, "N": 1, "R": 1},
)
