"""Llama 3.1's rotary embedding: transformers' frequencies and rotation."""

from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.positions.rope_llama3 import ROPE_LLAMA3

CONTEXT = 131072


def transformers_frequencies(head_width: int, *, theta: float, original_context: int, **bands: float) -> np.ndarray:
    """The R frequencies (float32) that transformers' `llama3` rule gives."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=head_width,
        num_attention_heads=1,
        head_dim=head_width,
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "original_max_position_embeddings": original_context,
            **bands,
        },
    )
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert attention_factor == 1.0
    return frequencies.numpy()


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
) -> Any:
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    speeds_R = transformers_frequencies(
        x_BTNH.shape[-1],
        theta=theta,
        factor=factor,
        low_freq_factor=low_freq_factor,
        high_freq_factor=high_freq_factor,
        original_context=original_context,
    )
    angles_BTR = torch.from_numpy(positions_BT)[..., None].double() * torch.from_numpy(speeds_R).double()
    angles_BTH = torch.cat([angles_BTR, angles_BTR], -1)
    x = torch.from_numpy(x_BTNH)
    turned, _ = apply_rotary_pos_emb(x, x, angles_BTH.cos().float(), angles_BTH.sin().float(), unsqueeze_dim=2)
    return turned.numpy()
