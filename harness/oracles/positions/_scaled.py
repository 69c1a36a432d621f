"""transformers' scaled rotary frequencies and its rotation, for the oracles of every scaling."""

from typing import Any

import numpy as np


def transformers_scaling(
    kind: str, head_width: int, *, context: int, length: float | None = None, **rope_parameters: Any
) -> tuple[np.ndarray, float]:
    """Return (frequencies_R in float32, attention factor) that ROPE_INIT_FUNCTIONS[kind] gives.

    `context` is max_position_embeddings of the configuration, `length` that of the text.
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=head_width,
        num_attention_heads=1,
        head_dim=head_width,
        max_position_embeddings=context,
        rope_parameters={"rope_type": kind, **rope_parameters},
    )
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return frequencies.numpy(), attention_factor


def turned(
    x_BTNH: np.ndarray, positions_BT: np.ndarray, frequencies_R: np.ndarray, attention_factor: float = 1.0
) -> np.ndarray:
    """Rotate as transformers' Llama does, its sines and cosines multiplied by the attention factor."""
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    angles_BTR = torch.from_numpy(positions_BT)[..., None].double() * torch.from_numpy(frequencies_R).double()
    angles_BTH = torch.cat([angles_BTR, angles_BTR], -1)
    x = torch.from_numpy(x_BTNH)
    cosine, sine = ((attention_factor * table).float() for table in (angles_BTH.cos(), angles_BTH.sin()))
    out_BTNH, _ = apply_rotary_pos_emb(x, x, cosine, sine, unsqueeze_dim=2)
    return out_BTNH.numpy()
