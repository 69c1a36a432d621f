"""GPT-NeoX-20B and Pythia (Black et al. 2022, arXiv:2204.06745, section 2.1; Biderman et al. 2023, arXiv:2304.01373).

Attention and feed-forward stand side by side, each behind a LayerNorm of its own; a quarter of every head is rotated; files
hold query, key and value of one head next to each other. Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import activation, rotary, sizes
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def gpt_neox(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    facts = sizes(f)
    facts |= rotary(f, facts["head_dim"], facts["max_position_embeddings"], share=0.25)
    bias = f.flag("attention_bias", True)
    facts |= {"attention_bias": bias, "attention_output_bias": bias, "mlp_bias": True, "gated_mlp": False}
    facts |= {"norm_bias": True, "rms_norm_eps": f.positive("layer_norm_eps", 1e-5)}
    parallel = f.flag("use_parallel_residual", True)
    return ModelConfig(**facts, parallel_block=parallel, hidden_act=activation(f, default="gelu"))


_VARIANTS: dict[str, dict[str, Any]] = {
    "gpt-neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
    "gpt-neox sequential": {"use_parallel_residual": False, "rotary_pct": 0.5, "tie_word_embeddings": True},
    "gpt-neox without biases": {"attention_bias": False, "rotary_pct": 1.0, "rotary_emb_base": 500, "hidden_act": "gelu_new"},
}
ARCHITECTURE = Architecture(
    ("gpt_neox",),
    read,
    tiny("gpt_neox", _VARIANTS, num_attention_heads=3),
    names={
        "model.embed_tokens": "gpt_neox.embed_in",
        "model.layers": "gpt_neox.layers",
        "model.norm": "gpt_neox.final_layer_norm",
        **{f"self_attn.{x}_proj": "attention.query_key_value" for x in "qkv"},
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    grouped=True,
    stored={"lm_head.weight": ("embed_out.weight",)},
)

SHAPES = few_layers("four layers of pythia-160m", "pythia-160m", 4)
GPT_NEOX = Procedure(gpt_neox, drawn_from(ARCHITECTURE), "arXiv:2204.06745", same=same_logits, cost=decoder_cost, shapes=SHAPES)
