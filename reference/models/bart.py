"""BART (Lewis et al. 2019, arXiv:1910.13461): a denoising encoder-decoder.

Post-norm layers with GELU, learned positions, one table of tokens for encoder, decoder and output; trained to restore texts
whose spans were cut out and whose sentences were shuffled. Axes: B batch, M source position, T target position, D width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers.embedding import embedding
from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.models._config import Fields
from llmlab.reference.models._encoder_decoder import (
    EncoderDecoder,
    decode_step,
    encode,
    encoder_decoder_cost,
    example,
    timed,
)
from llmlab.reference.models._fairseq import both_sides, stack
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Procedure

OFFSET = 2
"""Rows in front of the table of positions that the released code left unused."""


@dataclass(frozen=True)
class BartConfig(EncoderDecoder):
    """Both stacks, rows of the tables, and what tokens are scaled by."""

    positions: int
    scale: float

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> BartConfig:
        """Read a `config.json` of model_type bart.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        f.choice("model_type", ("bart",))
        encoder, decoder = stack(f, "encoder", pre_norm=False), stack(f, "decoder", pre_norm=False)
        scale = encoder.width**0.5 if f.flag("scale_embedding", False) else 1.0
        return cls(encoder, decoder, f.count("vocab_size"), f.count("max_position_embeddings", 1024), scale)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name."""
        D = self.encoder.width
        shapes: dict[str, tuple[int, ...]] = {
            "model.shared.weight": (self.vocab_size, D),
            "final_logits_bias": (1, self.vocab_size),
        }
        for side in ("encoder", "decoder"):
            shapes[f"model.{side}.embed_positions.weight"] = (self.positions + OFFSET, D)
            shapes |= {f"model.{side}.layernorm_embedding.{kind}": (D,) for kind in ("weight", "bias")}
        return shapes | self.encoder.shapes() | self.decoder.shapes()

    def embedded(self, weights: Weights, side: str, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        """Token and position, added and normed."""
        x_BTD = self.scale * embedding(ids_BT, weights["model.shared.weight"])
        x_BTD = x_BTD + embedding(OFFSET + positions_BT, weights[f"model.{side}.embed_positions.weight"])
        norm = f"model.{side}.layernorm_embedding"
        return layer_norm(x_BTD, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    def logits(self, weights: Weights, x_BTD: np.ndarray) -> np.ndarray:
        """By the table of tokens and a bias that is no parameter."""
        return x_BTD @ weights["model.shared.weight"].T + weights["final_logits_bias"]


def bart(config: BartConfig, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray, target_BT: np.ndarray) -> np.ndarray:
    """Score every next token of the targets, given the whole sources; return logits_BTV.

    `keep` False marks padding of the sources; targets are padded on the right, which their own tokens never see. The first
    target token is the one that starts a decoder (</s> in BART).

    Raises:
        ValueError: a weight is missing or misshapen, an id or a position outside its table.

    >>> config = tiny_config()
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> bart(config, zeros, np.array([[3, 4, 5]]), np.ones((1, 3), bool), np.array([[2, 3]])).shape
    (1, 2, 31)
    """
    check_shapes("bart", config.weight_shapes(), weights)
    return decode_step(config, weights, target_BT, encode(config, weights, source_BM, keep_BM), keep_BM)[0]


_TINY = {
    "model_type": "bart", "d_model": 12, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 3,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 17, "decoder_ffn_dim": 19, "vocab_size": 31, "max_position_embeddings": 14,
}  # fmt: skip


def tiny_config(*, scale_embedding: bool = False) -> BartConfig:
    """Two encoder layers and one decoder layer at sizes that are not round."""
    return BartConfig.from_dict({**_TINY, "scale_embedding": scale_embedding}, "tiny bart")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    return example(tiny_config(scale_embedding=bool(rng.integers(2))), rng)


def _base(rng: np.random.Generator) -> dict[str, Any]:
    sizes = both_sides(layers=6, attention_heads=12, ffn_dim=3072)
    return timed(BartConfig.from_dict({"model_type": "bart", "d_model": 768, "vocab_size": 50265, **sizes}), rng, M=32, T=8)


BART = Procedure(
    reference=bart,
    examples=_examples,
    paper="arXiv:1910.13461",
    same=same_logits,
    cost=encoder_decoder_cost,
    shapes={"bart-base, 32 in, 8 out": _base},
)
