"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825, section 2).

Llama with grouped queries, and in the first release every layer attending to the last 4096 positions only. Axes: B batch,
T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import llama_like, windows
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def mistral(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    facts = llama_like(f, kv_heads=8, longest=131072)
    return ModelConfig(**facts, attention_bias=False, **windows(f, facts["num_hidden_layers"], default=4096))


_VARIANTS: dict[str, dict[str, Any]] = {
    "mistral windowed": {"sliding_window": 4},
    "mistral": {"sliding_window": None, "head_dim": 10, "tie_word_embeddings": True},
}
ARCHITECTURE = Architecture(
    ("mistral",), read, tiny("mistral", _VARIANTS, num_attention_heads=4, num_key_value_heads=2, head_dim=6)
)

SHAPES = few_layers("a layer of mistral-7b, 16k tokens", "Mistral-7B-v0.1", 1, vocab_size=1 << 14)
MISTRAL = Procedure(mistral, drawn_from(ARCHITECTURE), "arXiv:2310.06825", same=same_logits, cost=decoder_cost, shapes=SHAPES)
