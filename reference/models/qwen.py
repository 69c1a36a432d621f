"""Qwen2, Qwen3 and their mixtures of experts (arXiv:2407.10671, section 2.2; arXiv:2505.09388, section 2).

Qwen2 is Llama with biases on queries, keys and values, its mixture has an always-on expert behind a gate of its own; Qwen3
norms every head of queries and keys instead. Windows hold in the layers from `max_window_layers` on. Axes: B batch,
T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import experts, llama_like, windows
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure

_KEY_VALUE_HEADS = {"qwen2": 32, "qwen3": 32, "qwen2_moe": 16, "qwen3_moe": 4}


def qwen(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    kind = f.text("model_type")
    head_dim = 128 if kind == "qwen3" else 0
    facts = llama_like(f, kv_heads=_KEY_VALUE_HEADS[kind], head_dim=head_dim, longest=32768)
    layers, third = facts["num_hidden_layers"], kind.startswith("qwen3")
    bias = f.flag("attention_bias", False) if third else f.flag("qkv_bias", True)
    facts |= {"qk_norm": third, "attention_bias": bias, "attention_output_bias": third and bias}
    if f.flag("use_sliding_window", False):
        facts |= windows(f, layers, first=0 if kind == "qwen3_moe" else f.count("max_window_layers", 28, least=0))
    return ModelConfig(**facts, **(_mixture(f, layers) if kind.endswith("_moe") else {}))


def _mixture(f: Fields, layers: int) -> dict[str, Any]:
    dense, step = f.d.get("mlp_only_layers") or [], f.count("decoder_sparse_step", 1)
    if not isinstance(dense, list) or not all(isinstance(layer, int) and 0 <= layer < layers for layer in dense):
        raise InputError(f.where, "mlp_only_layers", dense, f"must be layer numbers below num_hidden_layers={layers}")
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    shared = f.count("shared_expert_intermediate_size", 0) if f.text("model_type") == "qwen2_moe" else 0
    return experts(f, sparse, normalized=False) | {"shared_expert_intermediate_size": shared, "shared_expert_gate": True}


_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 11}
_QWEN2_MOE = {**_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 13}
_QWEN3_MOE = {**_MOE, "model_type": "qwen3_moe", "head_dim": 10, "norm_topk_prob": True, "mlp_only_layers": [1]}
_LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
_VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen2 windowed": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen2.5 stretched": {"rope_parameters": _YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
    "qwen3 tied": {"model_type": "qwen3", "head_dim": 6, "tie_word_embeddings": True, "attention_bias": True, **_LINEAR},
    "qwen2-moe": _QWEN2_MOE,
    "qwen2-moe every other": _QWEN2_MOE | {"decoder_sparse_step": 2, "norm_topk_prob": True},
    "qwen3-moe": _QWEN3_MOE,
}
ARCHITECTURE = Architecture(
    tuple(_KEY_VALUE_HEADS), read, tiny("qwen2", _VARIANTS, num_attention_heads=4, num_key_value_heads=2)
)

SHAPES = few_layers("four layers of qwen2.5-0.5b, 64k tokens", "Qwen2.5-0.5B", 4, vocab_size=1 << 16)
QWEN = Procedure(qwen, drawn_from(ARCHITECTURE), "arXiv:2407.10671", same=same_logits, cost=decoder_cost, shapes=SHAPES)
