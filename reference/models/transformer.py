"""The Transformer of 2017 (Vaswani et al., arXiv:1706.03762): the encoder-decoder everything here descends from.

Post-norm layers with ReLU, sinusoidal positions, one table of tokens for encoder, decoder and output, scaled by sqrt(D) on the
way in (section 3.4). Axes: B batch, M source position, T target position, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers.embedding import embedding
from llmlab.reference.models._config import Fields
from llmlab.reference.models._fairseq import stack
from llmlab.reference.models._stack import Seen, Stack, drawn, run
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.bart import encoder_decoder_cost, pair_of_texts, timed
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Procedure
from llmlab.reference.positions.sinusoidal import sinusoidal


@dataclass(frozen=True)
class TransformerConfig:
    """Both stacks and the rows of the one table."""

    encoder: Stack
    decoder: Stack
    vocab_size: int

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


def base_config(vocab_size: int = 37000) -> TransformerConfig:
    """The paper's base model (table 3): 6 layers, D = 512, 8 heads, F = 2048; 37,000 shared tokens."""
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in _BASE.items()}
    return TransformerConfig.from_dict({"d_model": 512, "vocab_size": vocab_size, **sizes}, "transformer base")


_BASE = {"layers": 6, "attention_heads": 8, "ffn_dim": 2048}


def _embedded(config: TransformerConfig, weights: Weights, ids_BT: np.ndarray, start: int) -> np.ndarray:
    positions_BT = np.broadcast_to(start + np.arange(ids_BT.shape[1]), ids_BT.shape)
    return sinusoidal(config.encoder.width**0.5 * embedding(ids_BT, weights["model.shared.weight"]), positions_BT)


def encode(config: TransformerConfig, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray) -> np.ndarray:
    """Return memory_BMD, what the decoder looks at."""
    return run(config.encoder, weights, _embedded(config, weights, source_BM, 0), keep_BS=keep_BM)[0]


def decode_step(
    config: TransformerConfig,
    weights: Weights,
    target_BT: np.ndarray,
    memory_BMD: np.ndarray | None,
    keep_BM: np.ndarray,
    past: Sequence[Seen] | None = None,
) -> tuple[np.ndarray, list[Seen]]:
    """Continue targets by T tokens; return (logits_BTV, present). Only the first call needs the encoder's output."""
    x_BTD = _embedded(config, weights, target_BT, past[0][0].shape[1] if past else 0)
    x_BTD, present = run(config.decoder, weights, x_BTD, causal=True, memory_BMD=memory_BMD, keep_BM=keep_BM, past=past)
    return x_BTD @ weights["model.shared.weight"].T, present


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


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config()
    return {"config": config, "weights": drawn(config.weight_shapes(), rng), **pair_of_texts(rng, config.vocab_size)}


TRANSFORMER = Procedure(
    reference=transformer,
    examples=_examples,
    paper="arXiv:1706.03762",
    same=same_logits,
    cost=encoder_decoder_cost,
    shapes={"base model, 32 in, 8 out": lambda rng: timed(base_config(), rng, M=32, T=8)},
)
