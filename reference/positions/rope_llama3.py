"""Llama 3.1's scaled rotary frequencies (Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.1; rule as in its release).

Axes: B batch, T position, N head, H head width (even), R = H/2 rotated pairs.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Op
from llmlab.reference.positions._stretched import QUERIES_8K, STRETCHED
from llmlab.reference.positions.rope import inverse_frequencies, rope, rope_backward


def llama3_frequencies(
    head_width: int,
    *,
    theta: float = 500000.0,
    factor: float = 8.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> np.ndarray:
    """Return the R angular speeds: slow ones divided by `factor`, fast ones kept, a linear blend between.

    A pair that turns n = original_context / wavelength times over the original context is kept where n >= high_freq_factor,
    slowed where n <= low_freq_factor; between, the share kept is (n - low) / (high - low).

    Raises:
        ValueError: an odd head width, or high_freq_factor not above low_freq_factor.

    >>> llama3_frequencies(4, theta=1e8) / inverse_frequencies(4, 1e8)  # one turn in 6.3 and in 62832 positions
    array([1.   , 0.125])
    """
    if not high_freq_factor > low_freq_factor:
        raise ValueError(f"high_freq_factor={high_freq_factor}: must be above low_freq_factor={low_freq_factor}")
    plain_R = inverse_frequencies(head_width, theta)
    turns_R = original_context * plain_R / (2 * np.pi)
    kept_R = np.clip((turns_R - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return plain_R * (kept_R + (1 - kept_R) / factor)


def rope_llama3(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 500000.0,
    factor: float = 8.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> np.ndarray:
    """Turn half-split pair r of every head by position * llama3 frequency_r; return out_BTNH.

    Raises:
        ValueError: an odd head width, or high_freq_factor not above low_freq_factor.

    >>> x = np.array([[[[3.0, 4.0]]]])
    >>> bool(np.all(rope_llama3(x, np.array([[1]])) == rope(x, np.array([[1]]))))  # the fastest pair is kept
    True
    """
    frequencies = llama3_frequencies(
        x_BTNH.shape[-1],
        theta=theta,
        factor=factor,
        low_freq_factor=low_freq_factor,
        high_freq_factor=high_freq_factor,
        original_context=original_context,
    )
    return rope(x_BTNH, positions_BT, frequencies=frequencies)


def rope_llama3_backward(
    dout_BTNH: np.ndarray, x_BTNH: np.ndarray, positions_BT: np.ndarray, *, theta: float = 500000.0, **scaling: float
) -> tuple[np.ndarray, None]:
    """Return (dx_BTNH, None): the gradient turned back by the same angle."""
    frequencies = llama3_frequencies(x_BTNH.shape[-1], theta=theta, **scaling)  # type: ignore[arg-type]
    return rope_backward(dout_BTNH, x_BTNH, positions_BT, frequencies=frequencies)


ROPE_LLAMA3 = Op(
    reference=rope_llama3,
    shapes={"llama-3.1-8b queries 8k tokens": QUERIES_8K},
    paper="arXiv:2407.21783",
    backward=rope_llama3_backward,
    options=({}, {"factor": 32.0}, {"theta": 10000.0, "low_freq_factor": 2.0, "original_context": 64}),
    **STRETCHED,
)
