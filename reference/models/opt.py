"""OPT (Zhang et al. 2022, arXiv:2205.01068, section 2.1).

GPT-3's shape with ReLU. The table of positions keeps two rows free in front. The 350M model alone norms after the residual
sum, has no final norm, and embeds half as wide as it computes. Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import BIASED, activation, sizes
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def opt(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`; norms without weights (`layer_norm_elementwise_affine` false) are refused."""
    f.refuse("layer_norm_elementwise_affine", unless=True)
    f.refuse("_remove_final_layer_norm")
    facts = sizes(f, fourfold=True, tied=True) | dict.fromkeys(BIASED, f.flag("enable_bias", True))
    facts |= {"positions": "learned", "learned_positions": facts["max_position_embeddings"] + 2, "gated_mlp": False}
    before = f.flag("do_layer_norm_before", True)
    facts |= {"norm_bias": True, "rms_norm_eps": 1e-5, "post_norm": not before, "final_norm": before}
    width = f.count("word_embed_proj_dim", facts["hidden_size"])
    facts["embedding_width"] = 0 if width == facts["hidden_size"] else width
    return ModelConfig(**facts, hidden_act=activation(f, "activation_function", "relu"))


_VARIANTS: dict[str, dict[str, Any]] = {
    "opt": {},
    "opt-350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 14},
    "opt untied": {"tie_word_embeddings": False, "enable_bias": False},
}
ARCHITECTURE = Architecture(
    ("opt",),
    read,
    tiny("opt", _VARIANTS, num_attention_heads=3, ffn_dim=29, max_position_embeddings=16),
    names={
        "model": "model.decoder",
        "model.layers": "model.decoder.layers",
        "model.norm": "model.decoder.final_layer_norm",
        "input_layernorm": "self_attn_layer_norm",
        "self_attn.o_proj": "self_attn.out_proj",
        "post_attention_layernorm": "final_layer_norm",
        "mlp.up_proj": "fc1",
        "mlp.down_proj": "fc2",
    },
)

SHAPES = few_layers("four layers of opt-125m", "opt-125m", 4)
OPT = Procedure(opt, drawn_from(ARCHITECTURE), "arXiv:2205.01068", same=same_logits, cost=decoder_cost, shapes=SHAPES)
