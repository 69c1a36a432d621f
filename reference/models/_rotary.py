"""The angular speeds of an architecture's rotary positions, whichever way its context is stretched.

Axes: R rotated pairs.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.models._config import ModelConfig
from llmlab.reference.positions.rope import inverse_frequencies
from llmlab.reference.positions.rope_llama3 import llama3_frequencies


def rotary_frequencies(config: ModelConfig, *, length: int = 0) -> tuple[np.ndarray, float]:
    """Return the R angular speeds in float64, and what rotated queries and keys are multiplied with.

    Args:
        config: the architecture.
        length: tokens of the text so far; only some scalings ask for it.

    Raises:
        ValueError: a scaling that is not known here.
    """
    rope = config.rope
    width = config.latent.rope_width if config.latent else config.rotary_width or config.head_dim
    if rope.kind == "default":
        return inverse_frequencies(width, rope.theta), 1.0
    if rope.kind == "linear":
        return inverse_frequencies(width, rope.theta) / rope.factor, 1.0
    if rope.kind == "llama3":
        stretched_R = llama3_frequencies(
            width,
            theta=rope.theta,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_context=rope.original_max_position_embeddings,
        )
        return stretched_R, 1.0
    raise ValueError(f"{config.name}: rope kind {rope.kind!r} is none of default, linear, llama3")
