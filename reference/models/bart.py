"""BART (Lewis et al. 2019, arXiv:1910.13461): a denoising encoder-decoder.

Post-norm layers with GELU, learned positions, one table of tokens for encoder, decoder and output; trained to restore texts
whose spans were cut out and whose sentences were shuffled. Axes: B batch, M source position, T target position, D width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers.embedding import embedding
from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.models._config import Fields
from llmlab.reference.models._fairseq import DECODER_LAYER, ENCODER_LAYER, stack
from llmlab.reference.models._stack import Seen, Stack, drawn, padded, run, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Cost, Dims, Procedure

OFFSET = 2
"""Rows in front of the table of positions that the released code left unused."""


@dataclass(frozen=True)
class BartConfig:
    """Both stacks, rows of the tables, and whether tokens are scaled by sqrt(D)."""

    encoder: Stack
    decoder: Stack
    vocab_size: int
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


def _embedded(config: BartConfig, weights: Weights, side: str, ids_BT: np.ndarray, start: int) -> np.ndarray:
    positions_BT = np.broadcast_to(start + OFFSET + np.arange(ids_BT.shape[1]), ids_BT.shape)
    x_BTD = config.scale * embedding(ids_BT, weights["model.shared.weight"])
    x_BTD = x_BTD + embedding(positions_BT, weights[f"model.{side}.embed_positions.weight"])
    norm = f"model.{side}.layernorm_embedding"
    return layer_norm(x_BTD, weights[f"{norm}.weight"], weights[f"{norm}.bias"])


def encode(config: BartConfig, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray) -> np.ndarray:
    """Return memory_BMD, what the decoder looks at."""
    return run(config.encoder, weights, _embedded(config, weights, "encoder", source_BM, 0), keep_BS=keep_BM)[0]


def decode_step(
    config: BartConfig,
    weights: Weights,
    target_BT: np.ndarray,
    memory_BMD: np.ndarray | None,
    keep_BM: np.ndarray,
    past: Sequence[Seen] | None = None,
) -> tuple[np.ndarray, list[Seen]]:
    """Continue targets by T tokens; return (logits_BTV, present). Only the first call needs the encoder's output."""
    x_BTD = _embedded(config, weights, "decoder", target_BT, past[0][0].shape[1] if past else 0)
    x_BTD, present = run(config.decoder, weights, x_BTD, causal=True, memory_BMD=memory_BMD, keep_BM=keep_BM, past=past)
    return x_BTD @ weights["model.shared.weight"].T + weights["final_logits_bias"], present


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


def encoder_decoder_cost(d: Dims) -> Cost:
    """Both stacks of L layers on B pairs of M source and T target tokens, and the logits."""
    D, N, F = d["D"], d["N"], d["F"]
    sizes = (d["L"], D, N, D // N, F, False, 0.0, "gelu")
    encoder, decoder = Stack("", ENCODER_LAYER, *sizes), Stack("", DECODER_LAYER, *sizes)
    logits = Cost(2 * d["B"] * d["T"] * D * d["V"], D * d["V"], d["B"] * d["T"] * d["V"])
    return encoder.cost(d["B"], d["M"], d["M"]) + decoder.cost(d["B"], d["T"], d["T"], M=d["M"], causal=True) + logits


_TINY = {
    "model_type": "bart", "d_model": 12, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 3,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 17, "decoder_ffn_dim": 19, "vocab_size": 31, "max_position_embeddings": 14,
}  # fmt: skip


def tiny_config(*, scale_embedding: bool = False) -> BartConfig:
    """Two encoder layers and one decoder layer at sizes that are not round."""
    return BartConfig.from_dict({**_TINY, "scale_embedding": scale_embedding}, "tiny bart")


def pair_of_texts(rng: np.random.Generator, vocab_size: int) -> dict[str, np.ndarray]:
    """Sources with padding, and targets of another length."""
    B, M, T = int(rng.integers(1, 4)), int(rng.integers(1, 10)), int(rng.integers(1, 8))
    source_BM, target_BT = rng.integers(0, vocab_size, (B, M)), rng.integers(0, vocab_size, (B, T))
    return {"source_BM": source_BM, "keep_BM": padded(rng, B, M), "target_BT": target_BT}


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config(scale_embedding=bool(rng.integers(2)))
    return {"config": config, "weights": drawn(config.weight_shapes(), rng), **pair_of_texts(rng, config.vocab_size)}


def timed(config: Any, rng: np.random.Generator, *, M: int, T: int) -> dict[str, Any]:
    """One source of M tokens and one target of T, float32 weights."""
    source_1M, target_1T = rng.integers(0, config.vocab_size, (1, M)), rng.integers(0, config.vocab_size, (1, T))
    weights = single(drawn(config.weight_shapes(), rng, std=0.02))
    return {"config": config, "weights": weights, "source_BM": source_1M, "keep_BM": source_1M >= 0, "target_BT": target_1T}


def _base(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}
    both = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sizes.items()}
    return timed(BartConfig.from_dict({"model_type": "bart", "d_model": 768, "vocab_size": 50265, **both}), rng, M=32, T=8)


BART = Procedure(
    reference=bart,
    examples=_examples,
    paper="arXiv:1910.13461",
    same=same_logits,
    cost=encoder_decoder_cost,
    shapes={"bart-base, 32 in, 8 out": _base},
)
