"""Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023, arXiv:2306.11644; Li et al. 2023, arXiv:2309.05463), Phi-3 and Phi-4
(Abdin et al. 2024, arXiv:2404.14219 and 2412.08905).

The first three: attention and feed-forward side by side behind one LayerNorm, half of a head rotated, biases everywhere, the
output matrix's included. Phi-3 is Llama whose files pack queries, keys and values in one and gate and up in another, with a
window in the small model and LongRoPE in those for 128k tokens. Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import BIASED, activation, llama_like, rotary, sizes, windows
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def phi(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    if f.text("model_type") == "phi3":
        facts = llama_like(f, eps=1e-5, longest=4096, share=1.0)
        return ModelConfig(**facts, **windows(f, facts["num_hidden_layers"]))
    facts = sizes(f) | BIASED
    facts |= rotary(f, facts["head_dim"], facts["max_position_embeddings"], share=0.5)
    facts |= {"parallel_block": True, "norms_per_layer": 1, "gated_mlp": False, "head_bias": True, "norm_bias": True}
    facts |= {"rms_norm_eps": f.positive("layer_norm_eps", 1e-5), "qk_norm": f.flag("qk_layernorm", False)}
    return ModelConfig(**facts, hidden_act=activation(f, default="gelu_new"))


_PHI: dict[str, Any] = {"num_attention_heads": 3}
_PHI3: dict[str, Any] = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2}
_FACTORS = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.0, 2.0, 4.0]}
_LONG: dict[str, Any] = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
_LONG["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 10000.0, **_FACTORS}
_VARIANTS: dict[str, dict[str, Any]] = {
    "phi-2": _PHI,
    "phi normed": {**_PHI, "qk_layernorm": True, "partial_rotary_factor": 0.25, "num_key_value_heads": 1},
    "phi-3": {**_PHI3, "sliding_window": 4},
    "phi-3 of 128k": {**_PHI3, "sliding_window": None, **_LONG},
    "phi-4-mini": {**_PHI3, "sliding_window": None, "tie_word_embeddings": True, "partial_rotary_factor": 0.75},
}
_PHI_NAMES = {
    "model.norm": "model.final_layernorm",
    "self_attn.o_proj": "self_attn.dense",
    "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
_PHI3_NAMES = {f"self_attn.{x}_proj": "self_attn.qkv_proj" for x in "qkv"}
_PHI3_NAMES |= {f"mlp.{x}_proj": "mlp.gate_up_proj" for x in ("gate", "up")}
ARCHITECTURE = Architecture(
    ("phi", "phi3"),
    read,
    tiny("phi", _VARIANTS),
    names_of=lambda config: _PHI3_NAMES if config.model_type == "phi3" else _PHI_NAMES,
)

SHAPES = few_layers("two layers of phi-1.5, 32k tokens", "phi-1_5", 2, vocab_size=1 << 15)
PHI = Procedure(phi, drawn_from(ARCHITECTURE), "arXiv:2309.05463", same=same_logits, cost=decoder_cost, shapes=SHAPES)
