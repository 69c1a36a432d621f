"""The Transformer of 2017 (Vaswani et al., arXiv:1706.03762): the encoder-decoder everything here descends from.

Post-norm layers with ReLU, sinusoidal positions, one table of tokens for encoder, decoder and output, scaled by sqrt(D) on the
way in (section 3.4). Axes: B batch, M source position, T target position, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers.embedding import embedding
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
from llmlab.reference.positions.sinusoidal import sinusoidal


@dataclass(frozen=True)
class TransformerConfig(EncoderDecoder):
    """Both stacks and the rows of the one table."""

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> TransformerConfig:
        """Read the fields that Marian's `config.json` has for the same sizes.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        encoder, decoder = (stack(f, side, pre_norm=False, activation="relu") for side in ("encoder", "decoder"))
        return cls(encoder, decoder, f.count("vocab_size"))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights; the names are fairseq's."""
        table = {"model.shared.weight": (self.vocab_size, self.encoder.width)}
        return table | self.encoder.shapes() | self.decoder.shapes()

    def embedded(self, weights: Weights, side: str, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        """Rows of the table times sqrt(D) (section 3.4), and sinusoids."""
        return sinusoidal(self.encoder.width**0.5 * embedding(ids_BT, weights["model.shared.weight"]), positions_BT)

    def logits(self, weights: Weights, x_BTD: np.ndarray) -> np.ndarray:
        """By the same table."""
        return x_BTD @ weights["model.shared.weight"].T


def base_config(vocab_size: int = 37000) -> TransformerConfig:
    """The paper's base model (table 3): 6 layers, D = 512, 8 heads, F = 2048; 37,000 shared tokens."""
    sizes = both_sides(layers=6, attention_heads=8, ffn_dim=2048)
    return TransformerConfig.from_dict({"d_model": 512, "vocab_size": vocab_size, **sizes}, "transformer base")


def transformer(
    config: TransformerConfig, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray, target_BT: np.ndarray
) -> np.ndarray:
    """Score every next token of the targets, given the whole sources; return logits_BTV.

    `keep` False marks padding of the sources; the first target token is whatever starts a translation.

    Raises:
        ValueError: a weight is missing or misshapen, or an id outside the vocabulary.

    >>> config = tiny_config()
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> transformer(config, zeros, np.array([[3, 4, 5]]), np.ones((1, 3), bool), np.array([[2, 3]])).shape
    (1, 2, 31)
    """
    check_shapes("transformer", config.weight_shapes(), weights)
    return decode_step(config, weights, target_BT, encode(config, weights, source_BM, keep_BM), keep_BM)[0]


_TINY = {
    "d_model": 12, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
    "encoder_ffn_dim": 17, "decoder_ffn_dim": 17, "vocab_size": 31,
}  # fmt: skip


def tiny_config() -> TransformerConfig:
    """Two layers each at sizes that are not round."""
    return TransformerConfig.from_dict(_TINY, "tiny transformer")


TRANSFORMER = Procedure(
    reference=transformer,
    examples=lambda rng: example(tiny_config(), rng),
    paper="arXiv:1706.03762",
    same=same_logits,
    cost=encoder_decoder_cost,
    shapes={"base model, 32 in, 8 out": lambda rng: timed(base_config(), rng, M=32, T=8)},
)
