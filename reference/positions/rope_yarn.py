"""YaRN (Peng et al. 2023, arXiv:2309.00071, sections 3.2 and 3.4).

Axes: B batch, T position, N head, H head width (even), R = H/2 rotated pairs.
"""

from __future__ import annotations

import math

import numpy as np

from llmlab.reference.op import Op
from llmlab.reference.positions._stretched import QUERIES_8K, STRETCHED, require_stretch
from llmlab.reference.positions.rope import inverse_frequencies, rope, rope_backward
from llmlab.reference.positions.rope_llama3 import llama3_frequencies


def temperature_factor(factor: float, mscale: float = 1.0) -> float:
    """Return what queries and keys are each multiplied by: sqrt(1/t) = 0.1 mscale ln(factor) + 1 (eq. 22), never below 1.

    >>> temperature_factor(1.0), round(temperature_factor(math.e**10), 12)
    (1.0, 2.0)
    """
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def yarn_scaling(
    head_width: int,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    original_max_position_embeddings: int = 2048,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
    mscale: float = 0.0,
    mscale_all_dim: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Return (frequencies_R, attention_factor) by the rule of YaRN's released code, which published models were trained with.

    Where the paper blends linearly in the number of turns n_r, the release blends linearly in the index r of the pair,
    between the pairs that make beta_fast and beta_slow turns, rounded outwards (`truncate`):

        r(n) = H ln(context / (2 pi n)) / (2 ln theta),   share kept = 1 - (r - r(fast)) / (r(slow) - r(fast)), in 0..1

    The attention factor multiplies sines and cosines, so queries and keys are scaled both and scores by its square. DeepSeek
    gives `mscale` and `mscale_all_dim`: then it is the quotient of their temperatures (and the rest goes into the softmax).

    Raises:
        ValueError: an odd head width, a factor below 1, or beta_fast not above beta_slow.

    >>> yarn_scaling(4, theta=1e8, factor=8.0)[0] / inverse_frequencies(4, 1e8)
    array([1.   , 0.125])
    """
    require_stretch(factor)
    if not beta_fast > beta_slow:
        raise ValueError(f"beta_fast={beta_fast}: must be above beta_slow={beta_slow}")
    first, last = (
        head_width * math.log(original_max_position_embeddings / (2 * math.pi * turns)) / (2 * math.log(theta))
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_width - 1)
    if first == last:
        last += 0.001  # as released: a step instead of a division by zero
    kept_R = 1 - np.clip((np.arange(head_width // 2) - first) / (last - first), 0, 1)
    if attention_factor is None:
        attention_factor = temperature_factor(factor)
        if mscale and mscale_all_dim:
            attention_factor = temperature_factor(factor, mscale) / temperature_factor(factor, mscale_all_dim)
    return inverse_frequencies(head_width, theta) * (kept_R + (1 - kept_R) / factor), attention_factor


def yarn_frequencies(
    head_width: int,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    original_max_position_embeddings: int = 2048,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> np.ndarray:
    """Return the R angular speeds of the paper's "NTK-by-parts", linear in the turns n = context / wavelength.

        share kept = (n - beta_slow) / (beta_fast - beta_slow), in 0..1      (eq. 18; alpha is beta_slow, beta beta_fast)
        h(theta_r) = theta_r (kept + (1 - kept) / factor)                    (Definition 2)

    Llama 3.1 later took this rule with the edges 1 and 4 and without a temperature, so it is computed there.

    >>> yarn_frequencies(4, theta=1e8, factor=8.0) / inverse_frequencies(4, 1e8)
    array([1.   , 0.125])
    """
    require_stretch(factor)
    return llama3_frequencies(
        head_width,
        theta=theta,
        factor=factor,
        low_freq_factor=beta_slow,
        high_freq_factor=beta_fast,
        original_context=original_max_position_embeddings,
    )


def rope_yarn(
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    original_max_position_embeddings: int = 2048,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> np.ndarray:
    """Turn half-split pair r of every head by position * YaRN's frequency_r and scale it; return out_BTNH.

        out = (0.1 ln(factor) + 1) * rope(x, h(theta))      (Definition 3: scores come out divided by the temperature t)

    This is the paper's rule. Published models (and every library) use the released one, `yarn_scaling`.

    Raises:
        ValueError: an odd head width, a factor below 1, or beta_fast not above beta_slow.

    >>> x = np.array([[[[3.0, 4.0]]]])
    >>> rope_yarn(x, np.array([[0]]), factor=math.e).ravel()  # position 0 is not turned, only scaled
    array([3.3, 4.4])
    """
    frequencies_R = yarn_frequencies(
        x_BTNH.shape[-1],
        theta=theta,
        factor=factor,
        original_max_position_embeddings=original_max_position_embeddings,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
    )
    return temperature_factor(factor) * rope(x_BTNH, positions_BT, frequencies=frequencies_R)


def rope_yarn_backward(
    dout_BTNH: np.ndarray,
    x_BTNH: np.ndarray,
    positions_BT: np.ndarray,
    *,
    theta: float = 10000.0,
    factor: float = 4.0,
    **edges: float,
) -> tuple[np.ndarray, None]:
    """Return (dx_BTNH, None): the gradient turned back by the same angle and scaled by the same factor."""
    frequencies_R = yarn_frequencies(x_BTNH.shape[-1], theta=theta, factor=factor, **edges)  # type: ignore[arg-type]
    dx_BTNH, _ = rope_backward(dout_BTNH, x_BTNH, positions_BT, frequencies=frequencies_R)
    return temperature_factor(factor) * dx_BTNH, None


ROPE_YARN = Op(
    reference=rope_yarn,
    shapes={"llama-2-7b stretched to 8k tokens": QUERIES_8K},
    paper="arXiv:2309.00071",
    backward=rope_yarn_backward,
    options=(
        {},
        {"factor": 16.0, "original_max_position_embeddings": 64},
        {"theta": 100.0, "beta_fast": 8.0, "beta_slow": 2.0},
    ),
    **STRETCHED,
)
