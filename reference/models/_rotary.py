"""The angular speeds of an architecture's rotary positions, whichever way its context is stretched.

Axes: R rotated pairs.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.models._config import ModelConfig
from llmlab.reference.positions.rope import inverse_frequencies
from llmlab.reference.positions.rope_linear import linear_scaling
from llmlab.reference.positions.rope_llama3 import llama3_frequencies
from llmlab.reference.positions.rope_longrope import longrope_scaling
from llmlab.reference.positions.rope_ntk import dynamic_ntk_scaling
from llmlab.reference.positions.rope_yarn import temperature_factor, yarn_scaling

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Scalings by the length of the text: keys in a cache keep the rotation of when they were made, as in transformers."""


def rotary_frequencies(config: ModelConfig, *, length: int = 0) -> tuple[np.ndarray, float]:
    """Return the R angular speeds in float64, and what rotated queries and keys are multiplied with.

    Args:
        config: the architecture.
        length: tokens of the text so far; `LENGTH_DEPENDENT` scalings ask for it.

    Raises:
        ValueError: a scaling that is not known here.
    """
    rope = config.rope
    width = config.latent.rope_width if config.latent else config.rotary_width or config.head_dim
    given = rope.attention_factor or None
    match rope.kind:
        case "default":
            return inverse_frequencies(width, rope.theta), 1.0
        case "linear":
            return linear_scaling(width, theta=rope.theta, factor=rope.factor)
        case "dynamic":
            return dynamic_ntk_scaling(
                width,
                length=length,
                max_position_embeddings=rope.original_max_position_embeddings,
                theta=rope.theta,
                factor=rope.factor,
            )
        case "llama3":
            stretched_R = llama3_frequencies(
                width,
                theta=rope.theta,
                factor=rope.factor,
                low_freq_factor=rope.low_freq_factor,
                high_freq_factor=rope.high_freq_factor,
                original_context=rope.original_max_position_embeddings,
            )
            return stretched_R, 1.0
        case "yarn":
            return yarn_scaling(
                width,
                theta=rope.theta,
                factor=rope.factor,
                original_max_position_embeddings=rope.original_max_position_embeddings,
                beta_fast=rope.beta_fast,
                beta_slow=rope.beta_slow,
                truncate=rope.truncate,
                attention_factor=given,
                mscale=rope.mscale,
                mscale_all_dim=rope.mscale_all_dim,
            )
        case "longrope":
            return longrope_scaling(
                width,
                length=length,
                short_factor=rope.short_factor,
                long_factor=rope.long_factor,
                original_max_position_embeddings=rope.original_max_position_embeddings,
                theta=rope.theta,
                factor=rope.factor,
                attention_factor=given,
            )
    raise ValueError(f"{config.name}: rope kind {rope.kind!r} is not known")


def latent_scale(config: ModelConfig) -> float:
    """What DeepSeek multiplies the softmax's 1/sqrt(width) with where the context is stretched: yarn's temperature, squared."""
    scaling = config.rope
    if scaling.kind == "default" or not scaling.mscale_all_dim:
        return 1.0
    return temperature_factor(scaling.factor, scaling.mscale_all_dim) ** 2
