"""MiniLM as a sentence encoder (Wang et al. 2020, arXiv:2002.10957; pooled as in Reimers and Gurevych 2019, arXiv:1908.10084).

A small BERT whose token vectors are averaged and scaled to length one: texts that mean the same lie close to each other.
Axes: B batch, T position, D model width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._stack import Stack, drawn, padded, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.bert import LAYER, BertConfig, encode, text_of
from llmlab.reference.models.bert import tiny_config as tiny_bert
from llmlab.reference.models.llama import same_logits
from llmlab.reference.op import Cost, Dims, Procedure


def minilm(config: BertConfig, weights: Weights, ids_BT: np.ndarray, keep_BT: np.ndarray) -> np.ndarray:
    """Return embedding_BD: one vector of length one per text; the product of two is their cosine.

        e = mean of h over what `keep` keeps,   embedding = e / |e|      (section 3 of the second paper, "MEAN-strategy")

    Raises:
        ValueError: a text of padding alone, a weight that is missing or misshapen, an id outside the vocabulary.

    >>> config = tiny_config()
    >>> weights = drawn(config.encoder_shapes(), np.random.default_rng(0))
    >>> two = minilm(config, weights, np.array([[3, 5], [3, 0]]), np.array([[True, True], [True, False]]))
    >>> np.linalg.norm(two, axis=1).round(12).tolist()
    [1.0, 1.0]
    """
    check_shapes("minilm", config.encoder_shapes(), weights)
    if not keep_BT.any(axis=1).all():
        raise ValueError(f"text {int(np.argmin(keep_BT.any(axis=1)))} is padding alone: there is nothing to average")
    hidden_BTD = encode(config, weights, ids_BT, keep_BT, np.zeros_like(ids_BT))
    kept_BTD = hidden_BTD * keep_BT[..., None]
    mean_BD = kept_BTD.sum(1) / keep_BT.sum(1, keepdims=True).astype(hidden_BTD.dtype)
    return mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)


def tiny_config() -> BertConfig:
    """BERT's tiny sizes under the names of a file without a head."""
    tiny = tiny_bert("bert").stack
    sizes = {"hidden_size": tiny.width, "num_attention_heads": tiny.heads, "intermediate_size": tiny.hidden}
    rest = {"num_hidden_layers": tiny.layers, "vocab_size": 31, "max_position_embeddings": 16}
    return BertConfig.from_dict({"model_type": "bert", **sizes, **rest}, "tiny minilm", body="")


def minilm_cost(d: Dims) -> Cost:
    """The encoder's layers, and one sum over the tokens."""
    stack = Stack("", LAYER, d["L"], d["D"], d["N"], d["D"] // d["N"], d["F"], False, 0.0, "gelu")
    work = stack.cost(d["B"], d["T"], d["T"])
    return Cost(work.flops + d["B"] * d["T"] * d["D"], work.elements_read, d["B"] * d["D"])


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config, B, T = tiny_config(), int(rng.integers(1, 4)), int(rng.integers(1, 12))
    ids_BT = rng.integers(0, config.vocab_size, (B, T))
    weights = drawn(config.encoder_shapes(), rng)
    return {"config": config, "weights": weights, "ids_BT": ids_BT, "keep_BT": padded(rng, B, T)}


def _l6(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 6}
    config = BertConfig.from_dict({"model_type": "bert", "vocab_size": 30522, **sizes}, "minilm-l6", body="")
    return {"config": config, "weights": single(drawn(config.encoder_shapes(), rng, std=0.02)), **text_of(config, rng, 1, 64)}


MINILM = Procedure(
    reference=minilm,
    examples=_examples,
    paper="arXiv:2002.10957",
    same=same_logits,
    cost=minilm_cost,
    shapes={"all-minilm-l6, one text of 64": _l6},
)
