"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437, section 2).

Latent attention; experts scored by sigmoids, chosen within the best groups after a bias per expert that balances their load,
beside an always-on expert; the first layers are dense. `multi_token` is the module that predicts one token further. Axes:
B batch, T position, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, LatentAttention, ModelConfig, Routing
from llmlab.reference.models._families import latent
from llmlab.reference.models._read import experts, llama_like
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def deepseek(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    facts = llama_like(f, longest=4096, share=1.0, head_dim=f.count("qk_rope_head_dim"))
    layers, bias = facts["num_hidden_layers"], f.flag("attention_bias", False)
    first = f.count("first_k_dense_replace", 3, least=0)
    facts |= experts(f, [layer >= first for layer in range(layers)], count="n_routed_experts")
    groups, kept = f.count("n_group", 8), f.count("topk_group", 4)
    if facts["num_experts"] % groups or kept > groups:
        raise InputError(f.where, "n_group", groups, f"must divide {facts['num_experts']} experts, {kept} groups being kept")
    scale = f.positive("routed_scaling_factor", 2.5)
    return ModelConfig(
        **facts | latent(f, layers, 0),
        attention_bias=bias,
        attention_output_bias=bias,
        rotary_interleaved=f.flag("rope_interleave", True),
        shared_expert_intermediate_size=f.count("n_shared_experts", 1, least=0) * facts["moe_intermediate_size"],
        routing=Routing("sigmoid", groups, kept, scale, correction=True),
        num_nextn_predict_layers=f.count("num_nextn_predict_layers", 1, least=0),
    )


_WIDTHS = {"kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8, "num_attention_heads": 3}
_EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 11}
_YARN = {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "rope_theta": 10000.0}
_YARN |= {"original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0}
_VARIANTS: dict[str, dict[str, Any]] = {
    "deepseek-v3": {"q_lora_rank": 14, "first_k_dense_replace": 1},
    "deepseek-v3 stretched": {"q_lora_rank": 14, "rope_parameters": _YARN, "num_hidden_layers": 1},
    "deepseek without a query latent": {"q_lora_rank": None, "first_k_dense_replace": 0, "tie_word_embeddings": True},
    "deepseek with biases": {"q_lora_rank": 14, "attention_bias": True, "rope_interleave": False, "n_shared_experts": 2},
}
ARCHITECTURE = Architecture(
    ("deepseek_v3",),
    read,
    tiny("deepseek_v3", _VARIANTS, num_key_value_heads=3, **_WIDTHS, **_EXPERTS),
    names={
        "self_attn.q_a_norm": "self_attn.q_a_layernorm",
        "self_attn.kv_a_norm": "self_attn.kv_a_layernorm",
        "self_attn.kv_a_proj": "self_attn.kv_a_proj_with_mqa",
        "mlp.shared_expert": "mlp.shared_experts",
    },
)

_QUARTER: dict[str, Any] = {"hidden_size": 1792, "num_attention_heads": 32, "num_key_value_heads": 32, "num_experts": 64}
_QUARTER |= {"intermediate_size": 4608, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
_QUARTER |= {"latent": LatentAttention(384, 128, 128, 64, 128), "sparse_layers": (False, True), "vocab_size": 1 << 15}
SHAPES = few_layers("a dense and a sparse layer of deepseek-v3 at a quarter of its widths", "DeepSeek-V3", 2, **_QUARTER)
DEEPSEEK = Procedure(deepseek, drawn_from(ARCHITECTURE), "arXiv:2412.19437", same=same_logits, cost=decoder_cost, shapes=SHAPES)
