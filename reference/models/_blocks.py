"""The blocks every decoder-only transformer of the Llama family is put together from.

Axes: B batch, T new position, S position, D model width, F feed-forward width, V vocabulary, K key/value head, G query heads
per key/value head, N = K * G query heads, H head width, R = H/2 rotated pairs. Matrices are [out, in], as in the files.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.models._config import ModelConfig
from llmlab.reference.positions.rope import inverse_frequencies
from llmlab.reference.positions.rope_llama3 import llama3_frequencies


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
    """Return the R angular speeds of an architecture's rotation, in float64.

    Raises:
        ValueError: a scaling that depends on the length of the text (dynamic, yarn, longrope).
    """
    rope = config.rope
    if rope.kind == "default":
        return inverse_frequencies(config.head_dim, rope.theta)
    if rope.kind == "linear":
        return inverse_frequencies(config.head_dim, rope.theta) / rope.factor
    if rope.kind == "llama3":
        return llama3_frequencies(
            config.head_dim,
            theta=rope.theta,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_context=rope.original_max_position_embeddings,
        )
    raise ValueError(f"{config.name}: rope kind {rope.kind!r} is none of default, linear, llama3")
