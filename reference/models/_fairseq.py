"""Encoder-decoders whose weights go by fairseq's names: the Transformer of 2017, BART, Whisper."""

from __future__ import annotations

from llmlab.reference.models._config import Fields
from llmlab.reference.models._stack import ACTIVATIONS, Stack

ENCODER_LAYER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "up": "fc1",
    "down": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
DECODER_LAYER = ENCODER_LAYER | {
    "cross_query": "encoder_attn.q_proj",
    "cross_key": "encoder_attn.k_proj",
    "cross_value": "encoder_attn.v_proj",
    "cross_out": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
}


def stack(f: Fields, side: str, *, pre_norm: bool, unbiased: frozenset[str] = frozenset(), activation: str = "gelu") -> Stack:
    """The "encoder" or "decoder" that a `config.json` with fairseq's fields describes.

    Raises:
        InputError: a field is missing or wrong.
    """
    D, N = f.count("d_model"), f.count(f"{side}_attention_heads")
    f.divides("d_model", D, N)
    return Stack(
        prefix=f"model.{side}.layers.{{}}.",
        names=DECODER_LAYER if side == "decoder" else ENCODER_LAYER,
        layers=f.count(f"{side}_layers"),
        width=D,
        heads=N,
        head_width=D // N,
        hidden=f.count(f"{side}_ffn_dim"),
        pre_norm=pre_norm,
        eps=1e-5,
        activation=ACTIVATIONS[f.choice("activation_function", tuple(ACTIVATIONS), activation)],
        unbiased=unbiased,
    )


def both_sides(**sizes: int) -> dict[str, int]:
    """Fields of a `config.json` whose encoder and decoder are alike: `layers=6` is encoder_layers and decoder_layers."""
    return {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
