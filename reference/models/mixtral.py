"""Mixtral 8x7B (Jiang et al. 2024, arXiv:2401.04088, section 2.1).

Mistral with eight feed-forwards per layer of which every token visits two, weighted by the softmax over those two. Axes:
B batch, T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import experts, llama_like, windows
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def mixtral(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    facts = llama_like(f, kv_heads=8, longest=131072, theta=1e6, eps=1e-5)
    layers = facts["num_hidden_layers"]
    facts |= experts(f, [True] * layers, count="num_local_experts", width="intermediate_size") | {"norm_topk_prob": True}
    return ModelConfig(**facts, **windows(f, layers))


_VARIANTS: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": None},
    "mixtral windowed": {"sliding_window": 4, "num_experts_per_tok": 1, "tie_word_embeddings": True},
}
ARCHITECTURE = Architecture(
    ("mixtral",),
    read,
    tiny("mixtral", _VARIANTS, num_attention_heads=4, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2),
    stored={
        "mlp.gate.weight": ("block_sparse_moe.gate.weight",),
        "mlp.experts.gate_up_proj": ("block_sparse_moe.experts.{}.w1.weight", "block_sparse_moe.experts.{}.w3.weight"),
        "mlp.experts.down_proj": ("block_sparse_moe.experts.{}.w2.weight",),
    },
)

_QUARTER = {"hidden_size": 1024, "moe_intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2}
SHAPES = few_layers("two layers of mixtral-8x7b at a quarter of its widths", "Mixtral-8x7B-v0.1", 2, **_QUARTER)
MIXTRAL = Procedure(mixtral, drawn_from(ARCHITECTURE), "arXiv:2401.04088", same=same_logits, cost=decoder_cost, shapes=SHAPES)
