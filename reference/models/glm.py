"""GLM-4 (GLM team 2024, arXiv:2406.12793, section 2), and the blank-infilling order of the first GLM (Du et al. 2021,
arXiv:2103.10360, section 2.1).

GLM-4 is Llama with half of every head rotated in neighbouring pairs, biases on queries, keys and values, gate and up packed in
one; the releases of 2025 (`glm4`) norm what attention and feed-forward return as well. Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import llama_like
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def glm(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    facts = llama_like(f, kv_heads=2, head_dim=128, longest=131072, share=0.5, eps=1.5625e-7)
    facts |= {"attention_bias": f.flag("attention_bias", True), "rotary_interleaved": True}
    return ModelConfig(**facts, norms_per_layer=4 if f.text("model_type") == "glm4" else 2)


_VARIANTS: dict[str, dict[str, Any]] = {
    "glm-4": {"model_type": "glm"},
    "glm-4-0414": {"attention_bias": False},
    "glm-4 tied": {"tie_word_embeddings": True, "head_dim": 12, "rms_norm_eps": 1e-5},
}
ARCHITECTURE = Architecture(
    ("glm", "glm4"),
    read,
    tiny("glm4", _VARIANTS, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    names={"mlp.gate_proj": "mlp.gate_up_proj", "mlp.up_proj": "mlp.gate_up_proj"},
)

SHAPES = few_layers("a layer of glm-4-9b, 16k tokens", "glm-4-9b", 1, vocab_size=1 << 14)
GLM = Procedure(glm, drawn_from(ARCHITECTURE), "arXiv:2406.12793", same=same_logits, cost=decoder_cost, shapes=SHAPES)
