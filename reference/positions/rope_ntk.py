"""NTK-aware and dynamic NTK scaling (bloc97, emozilla 2023; Peng et al. 2023, arXiv:2309.00071, sections 3.1 and 3.3).

Axes: B batch, T position, N head, H head width (even), R = H/2 rotated pairs.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Op
from llmlab.reference.positions._stretched import QUERIES_8K, STRETCHED, require_stretch
from llmlab.reference.positions.rope import inverse_frequencies, rope, rope_backward


def ntk_scaling(head_width: int, *, theta: float = 10000.0, factor: float = 4.0) -> tuple[np.ndarray, float]:
    """Return (frequencies_R, 1.0): the base raised so that the slowest pair is slowed by `factor` and the fastest kept.

        theta' = theta * factor^(H / (H - 2))      (Definition 1)

    Raises:
        ValueError: a head width that is odd or below 4, or a factor below 1.

    >>> ntk_scaling(4, theta=100.0, factor=2.0)
    (array([1.  , 0.05]), 1.0)
    """
    require_stretch(factor)
    if head_width < 4:
        raise ValueError(f"head_width={head_width}: one pair cannot be both kept and slowed")
    return inverse_frequencies(head_width, theta * factor ** (head_width / (head_width - 2))), 1.0


def dynamic_ntk_scaling(
    head_width: int, *, length: int, max_position_embeddings: int, theta: float = 10000.0, factor: float = 4.0
) -> tuple[np.ndarray, float]:
    """Return (frequencies_R, 1.0) for a text of `length` tokens: nothing changes until it outgrows the trained context.

        s = factor * length / context - (factor - 1),  at least 1      (as released; 1 at the context's end)

    The paper's own section 3.3 has s = max(1, length / context), which is factor = 1 here; configurations carry a factor.
    Keys that were rotated while the text was shorter have been rotated by other angles: cache them before rotation.

    Raises:
        ValueError: a head width that is odd or below 4, a factor below 1, or no context.

    >>> dynamic_ntk_scaling(4, length=100, max_position_embeddings=100, theta=100.0)
    (array([1. , 0.1]), 1.0)
    >>> dynamic_ntk_scaling(4, length=200, max_position_embeddings=100, theta=100.0, factor=1.0)
    (array([1.  , 0.05]), 1.0)
    """
    require_stretch(factor)
    if max_position_embeddings < 1:
        raise ValueError(f"max_position_embeddings={max_position_embeddings}: must be at least 1")
    beyond = max(length / max_position_embeddings - 1, 0)
    return ntk_scaling(head_width, theta=theta, factor=1 + factor * beyond)


def rope_ntk(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    max_position_embeddings: int | None = None,
) -> np.ndarray:
    """Turn half-split pair r of every head by position * NTK-scaled frequency_r; return out_BTNH.

    With the context the model was trained on (`max_position_embeddings`) the stretch is dynamic: it follows the length of
    the text, which is its last position + 1 over the whole batch. Without it `factor` always holds.

    Raises:
        ValueError: a head width that is odd or below 4, a factor below 1, or no context.

    >>> x = np.array([[[[3.0, 1.0, 4.0, 2.0]]]])
    >>> early = rope_ntk(x, np.array([[7]]), max_position_embeddings=8)
    >>> bool(np.all(early == rope(x, np.array([[7]]))))  # within the trained context
    True
    """
    frequencies_R = _frequencies(x_BTNH.shape[-1], positions_BT, theta, factor, max_position_embeddings)
    return rope(x_BTNH, positions_BT, frequencies=frequencies_R)


def _frequencies(head_width: int, positions_BT: np.ndarray, theta: float, factor: float, context: int | None) -> np.ndarray:
    if context is None:
        return ntk_scaling(head_width, theta=theta, factor=factor)[0]
    length = int(positions_BT.max(initial=-1)) + 1
    return dynamic_ntk_scaling(head_width, length=length, max_position_embeddings=context, theta=theta, factor=factor)[0]


def rope_ntk_backward(
    dout_BTNH: np.ndarray,
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    max_position_embeddings: int | None = None,
) -> tuple[np.ndarray, None]:
    """Return (dx_BTNH, None): the gradient turned back by the same angle."""
    frequencies_R = _frequencies(x_BTNH.shape[-1], positions_BT, theta, factor, max_position_embeddings)
    return rope_backward(dout_BTNH, x_BTNH, positions_BT, frequencies=frequencies_R)


ROPE_NTK = Op(
    reference=rope_ntk,
    shapes={"llama-7b stretched to 8k tokens": QUERIES_8K},
    paper="arXiv:2309.00071",
    backward=rope_ntk_backward,
    options=({}, {"max_position_embeddings": 8}, {"factor": 2.0, "theta": 500000.0, "max_position_embeddings": 5}),
    **STRETCHED | {"dims": {**STRETCHED["dims"], "R": range(2, 9)}},  # one pair cannot be both kept and slowed
)
