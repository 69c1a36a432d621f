"""T5 and FLAN-T5 (Raffel et al. 2019, arXiv:1910.10683; Chung et al. 2022, arXiv:2210.11416): every task as text to text.

Pre-norm layers with RMSNorm, no biases, a bucketed position bias that all layers share, and scores that are not divided by
sqrt(H). Version 1.1 and FLAN have a gated feed-forward block and an output matrix of their own.
Axes: B batch, M source position, T target position, D width, U bucket, N head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.layers.embedding import embedding
from llmlab.reference.layers.rms_norm import rms_norm
from llmlab.reference.models._config import Fields
from llmlab.reference.models._encoder_decoder import (
    EncoderDecoder,
    decode_step,
    encode,
    encoder_decoder_cost,
    example,
    timed,
)
from llmlab.reference.models._stack import ACTIVATIONS, MATRICES, Stack
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Procedure
from llmlab.reference.positions.t5_bias import buckets_TS


def _names(side: str, gated: bool) -> dict[str, str]:
    blocks = [("", "SelfAttention", "attention_norm")]
    blocks += [("cross_", "EncDecAttention", "cross_norm")] if side == "decoder" else []
    names = {}
    for number, (cross, block, norm) in enumerate(blocks):
        for slot, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            names[f"{cross}{slot}"] = f"layer.{number}.{block}.{letter}"
        names[norm] = f"layer.{number}.layer_norm"
    last = f"layer.{len(blocks)}."
    wide = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    names |= {slot: f"{last}DenseReluDense.{name}" for slot, name in (wide | {"down": "wo"}).items()}
    return names | {"feed_forward_norm": f"{last}layer_norm"}


@dataclass(frozen=True)
class T5Config(EncoderDecoder):
    """Both stacks, the tables, and whether the output matrix is the table of tokens."""

    buckets: int
    max_distance: int
    tied: bool

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> T5Config:
        """Read a `config.json` of model_type t5.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        f.choice("model_type", ("t5", "mt5"))
        kind = f.text("feed_forward_proj", "relu")
        activation = kind.removeprefix("gated-")
        if activation not in ACTIVATIONS:
            raise InputError(where, "feed_forward_proj", kind, f"is none of {', '.join(ACTIVATIONS)}, each perhaps gated-")
        gated = kind.startswith("gated-")
        if kind == "gated-gelu":
            activation = "gelu_new"  # the released 1.1 models: GELU by its tanh form
        layers = f.count("num_layers")

        def stack(side: str, depth: int) -> Stack:
            return Stack(
                prefix=f"{side}.block.{{}}.",
                names=_names(side, gated),
                layers=depth,
                width=f.count("d_model"),
                heads=f.count("num_heads"),
                head_width=f.count("d_kv"),
                hidden=f.count("d_ff"),
                pre_norm=True,
                eps=f.positive("layer_norm_epsilon", 1e-6),
                activation=ACTIVATIONS[activation],
                rms=True,
                unbiased=frozenset(MATRICES),
                scaled=False,
            )

        return cls(
            stack("encoder", layers),
            stack("decoder", f.count("num_decoder_layers", layers)),
            f.count("vocab_size"),
            f.count("relative_attention_num_buckets", 32),
            f.count("relative_attention_max_distance", 128),
            f.flag("tie_word_embeddings", True),
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name."""
        D = self.encoder.width
        shapes: dict[str, tuple[int, ...]] = {"shared.weight": (self.vocab_size, D)}
        for side, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            shapes[bias_name(side)] = (self.buckets, stack.heads)
            shapes[f"{side}.final_layer_norm.weight"] = (D,)
        return (
            shapes
            | self.encoder.shapes()
            | self.decoder.shapes()
            | ({} if self.tied else {"lm_head.weight": (self.vocab_size, D)})
        )

    def embedded(self, weights: Weights, side: str, ids_BT: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
        """Tokens alone: where they stand is said by the bias."""
        return embedding(ids_BT, weights["shared.weight"])

    def bias(self, weights: Weights, side: str, T: int, S: int) -> np.ndarray:
        """A number per head and bucket of distance."""
        bucket_TS = buckets_TS(T, S, self.buckets, bidirectional=side == "encoder", max_distance=self.max_distance)
        return np.moveaxis(weights[bias_name(side)][bucket_TS], -1, 0)

    def finished(self, weights: Weights, side: str, x_BTD: np.ndarray) -> np.ndarray:
        """The last norm of a pre-norm stack."""
        return rms_norm(x_BTD, weights[f"{side}.final_layer_norm.weight"], eps=self.encoder.eps)

    def logits(self, weights: Weights, x_BTD: np.ndarray) -> np.ndarray:
        """Where the output matrix is the table of tokens, states are divided by sqrt(D) first (the released code)."""
        if self.tied:
            return x_BTD * self.decoder.width**-0.5 @ weights["shared.weight"].T
        return x_BTD @ weights["lm_head.weight"].T


def bias_name(side: str) -> str:
    """Where the position bias of a side is kept: in its first layer, for all of them."""
    return f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def t5(config: T5Config, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray, target_BT: np.ndarray) -> np.ndarray:
    """Score every next token of the targets, given the whole sources; return logits_BTV.

    `keep` False marks padding of the sources. The first target token is the padding token (id 0), which starts a decoder.

    Raises:
        ValueError: a weight is missing or misshapen, or an id outside the vocabulary.

    >>> config = tiny_config("t5")
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> t5(config, zeros, np.array([[3, 4, 1]]), np.ones((1, 3), bool), np.array([[0, 3]])).shape
    (1, 2, 31)
    """
    check_shapes("t5", config.weight_shapes(), weights)
    return decode_step(config, weights, target_BT, encode(config, weights, source_BM, keep_BM), keep_BM)[0]


_TINY = {
    "model_type": "t5", "d_model": 12, "num_heads": 3, "d_kv": 5, "d_ff": 17, "num_layers": 2, "num_decoder_layers": 1,
    "vocab_size": 31, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip


def tiny_config(kind: str) -> T5Config:
    """A "t5" (ReLU, tied) or "flan" (gated GELU, untied) at sizes that are not round; heads do not fill the width."""
    own = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "flan" else {}
    return T5Config.from_dict({**_TINY, **own}, f"tiny {kind}")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    return example(tiny_config(str(rng.choice(["t5", "flan"]))), rng)


def _small(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"d_model": 512, "num_heads": 8, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "vocab_size": 32128}
    return timed(T5Config.from_dict({"model_type": "t5", **sizes}), rng, M=32, T=8)


T5 = Procedure(
    reference=t5,
    examples=_examples,
    paper="arXiv:1910.10683",
    same=same_logits,
    cost=encoder_decoder_cost,
    shapes={"t5-small, 32 in, 8 out": _small},
)
