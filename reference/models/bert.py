"""BERT (Devlin et al. 2018, arXiv:1810.04805) and RoBERTa (Liu et al. 2019, arXiv:1907.11692), with masked-token heads.

Post-norm layers over token, position and segment embeddings. Axes: B batch, T position, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers.embedding import embedding
from llmlab.reference.layers.layer_norm import layer_norm
from llmlab.reference.models._blocks import linear
from llmlab.reference.models._config import Fields
from llmlab.reference.models._stack import ACTIVATIONS, Stack, activated, drawn, padded, run, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Cost, Dims, Procedure

LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder and what tells BERT from RoBERTa.

    Attributes:
        body: prefix of the encoder's weights: "bert.", "roberta.", or nothing in a file without a head.
        stack: the layers.
        vocab_size, positions, segments: rows of the three tables.
        padding: RoBERTa counts positions from padding + 1 and leaves padding out of the count; None in BERT.
    """

    body: str
    stack: Stack
    vocab_size: int
    positions: int
    segments: int
    padding: int | None

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config", *, body: str | None = None) -> BertConfig:
        """Read a `config.json` of model_type bert or roberta; `body=""` for files whose names have no prefix.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        kind = f.choice("model_type", ("bert", "roberta", "xlm-roberta"))
        D, N = f.count("hidden_size"), f.count("num_attention_heads")
        f.divides("hidden_size", D, N)
        body = {"bert": "bert."}.get(kind, "roberta.") if body is None else body
        stack = Stack(
            prefix=f"{body}encoder.layer.{{}}.",
            names=LAYER,
            layers=f.count("num_hidden_layers"),
            width=D,
            heads=N,
            head_width=D // N,
            hidden=f.count("intermediate_size"),
            pre_norm=False,
            eps=f.positive("layer_norm_eps", 1e-12),
            activation=ACTIVATIONS[f.choice("hidden_act", tuple(ACTIVATIONS), "gelu")],
        )
        padding = None if kind == "bert" else f.count("pad_token_id", 1, least=0)
        segments = f.count("type_vocab_size", 2)
        return cls(body, stack, f.count("vocab_size"), f.count("max_position_embeddings", 512), segments, padding)

    def encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the encoder's weights by their Hugging Face name."""
        D, tables = self.stack.width, f"{self.body}embeddings."
        return {
            f"{tables}word_embeddings.weight": (self.vocab_size, D),
            f"{tables}position_embeddings.weight": (self.positions, D),
            f"{tables}token_type_embeddings.weight": (self.segments, D),
            f"{tables}LayerNorm.weight": (D,),
            f"{tables}LayerNorm.bias": (D,),
        } | self.stack.shapes()

    @property
    def head(self) -> tuple[str, str, str]:
        """Names of the head's matrix, norm and output bias."""
        if self.padding is None:
            return "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
        return "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The encoder's and the masked-token head's; the output matrix is the table of tokens."""
        D, (dense, norm, bias) = self.stack.width, self.head
        own = {f"{dense}.weight": (D, D), f"{dense}.bias": (D,), f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
        return self.encoder_shapes() | own | {bias: (self.vocab_size,)}


def encode(
    config: BertConfig, weights: Weights, ids_BT: np.ndarray, keep_BT: np.ndarray, segments_BT: np.ndarray
) -> np.ndarray:
    """Return hidden_BTD: every token in the light of all that `keep` does not hide."""
    tables = f"{config.body}embeddings."
    if config.padding is None:
        positions_BT = np.broadcast_to(np.arange(ids_BT.shape[1]), ids_BT.shape)
    else:
        is_token = ids_BT != config.padding
        positions_BT = np.cumsum(is_token, axis=1) * is_token + config.padding
    x_BTD = embedding(ids_BT, weights[f"{tables}word_embeddings.weight"])
    x_BTD = x_BTD + embedding(positions_BT, weights[f"{tables}position_embeddings.weight"])
    x_BTD = x_BTD + embedding(segments_BT, weights[f"{tables}token_type_embeddings.weight"])
    x_BTD = layer_norm(x_BTD, weights[f"{tables}LayerNorm.weight"], weights[f"{tables}LayerNorm.bias"], eps=config.stack.eps)
    return run(config.stack, weights, x_BTD, keep_BS=keep_BT)[0]


def bert(config: BertConfig, weights: Weights, ids_BT: np.ndarray, keep_BT: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
    """Score the vocabulary at every position; return logits_BTV (of use where a token was masked).

        logits = E norm(gelu(W h + b)) + c      (E the table of tokens; the head of the released code)

    `keep` False marks padding; `segments` tells the first text from the second.

    Raises:
        ValueError: a weight is missing or misshapen, an id, position or segment outside its table.

    >>> config = tiny_config("bert")
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> ids = np.array([[1, 2]])
    >>> bert(config, zeros, ids, ids > 0, 0 * ids).shape
    (1, 2, 31)
    """
    check_shapes("bert", config.weight_shapes(), weights)
    hidden_BTD = encode(config, weights, ids_BT, keep_BT, segments_BT)
    dense, norm, bias = config.head
    h_BTD = activated(config.stack.activation, linear(weights, dense, hidden_BTD))
    h_BTD = layer_norm(h_BTD, weights[f"{norm}.weight"], weights[f"{norm}.bias"], eps=config.stack.eps)
    return h_BTD @ weights[f"{config.body}embeddings.word_embeddings.weight"].T + weights[bias]


def bert_cost(d: Dims) -> Cost:
    """Layers, head and logits of B texts of T tokens; norms and activations are a hundredth of it and left out."""
    D, tokens = d["D"], d["B"] * d["T"]
    stack = Stack("", LAYER, d["L"], D, d["N"], D // d["N"], d["F"], False, 0.0, "gelu")
    head = Cost(2 * tokens * D * (D + d["V"]), D * (D + d["V"]), tokens * d["V"])
    return stack.cost(d["B"], d["T"], d["T"]) + head


_TINY = {
    "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 2, "vocab_size": 31,
    "max_position_embeddings": 16, "pad_token_id": 1,
}  # fmt: skip


def tiny_config(kind: str) -> BertConfig:
    """A two-layer "bert" or "roberta" at sizes that are not round."""
    own = {"type_vocab_size": 2} if kind == "bert" else {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return BertConfig.from_dict({"model_type": kind, **_TINY, **own}, f"tiny {kind}")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config(str(rng.choice(["bert", "roberta"])))
    B, T = int(rng.integers(1, 4)), int(rng.integers(1, 12))
    keep_BT = padded(rng, B, T)
    ids_BT = np.where(keep_BT, rng.integers(2, config.vocab_size, (B, T)), 1)
    return {
        "config": config,
        "weights": drawn(config.weight_shapes(), rng),
        "ids_BT": ids_BT,
        "keep_BT": keep_BT,
        "segments_BT": rng.integers(0, config.segments, (B, T)),
    }


def text_of(config: BertConfig, rng: np.random.Generator, B: int, T: int) -> dict[str, Any]:
    """B texts of T random tokens, nothing padded."""
    ids_BT = rng.integers(2, config.vocab_size, (B, T))
    return {"ids_BT": ids_BT, "keep_BT": np.ones((B, T), dtype=bool)}


def _small(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 4}
    config = BertConfig.from_dict({"model_type": "bert", "vocab_size": 30522, **sizes}, "bert-small")
    text = text_of(config, rng, 1, 128)
    weights = single(drawn(config.weight_shapes(), rng, std=0.02))
    return {"config": config, "weights": weights, **text, "segments_BT": 0 * text["ids_BT"]}


BERT = Procedure(
    reference=bert,
    examples=_examples,
    paper="arXiv:1810.04805",
    same=same_logits,
    cost=bert_cost,
    shapes={"bert-small (4 x 512), one text of 128": _small},
)
