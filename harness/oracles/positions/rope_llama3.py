"""Llama 3.1's rotary embedding: transformers' frequencies and rotation."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.positions._scaled import transformers_scaling, turned
from llmlab.reference.positions.rope_llama3 import ROPE_LLAMA3

CONTEXT = 131072


def transformers_frequencies(head_width: int, *, theta: float, original_context: int, **bands: float) -> np.ndarray:
    """The R frequencies (float32) that transformers' `llama3` rule gives."""
    frequencies_R, attention_factor = transformers_scaling(
        "llama3", head_width, context=CONTEXT, rope_theta=theta, original_max_position_embeddings=original_context, **bands
    )
    assert attention_factor == 1.0
    return frequencies_R


@oracle(ROPE_LLAMA3, library="transformers ROPE_INIT_FUNCTIONS['llama3']", dtype="float32", needs=("torch", "transformers"))
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
    frequencies_R = transformers_frequencies(
        x_BTNH.shape[-1],
        theta=theta,
        factor=factor,
        low_freq_factor=low_freq_factor,
        high_freq_factor=high_freq_factor,
        original_context=original_context,
    )
    return turned(x_BTNH, positions_BT, frequencies_R)
