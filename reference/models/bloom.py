"""BLOOM (BigScience 2022, arXiv:2211.05100, section 3.2).

Linear biases instead of positions (ALiBi), a LayerNorm right after the embedding, GELU by tanh; files hold query, key and
value of one head next to each other. Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.models._architecture import TINY, Architecture
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import BIASED, sizes
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def bloom(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`; residuals taken after the norm (`apply_residual_connection_post_layernorm`) are refused."""
    f.refuse("apply_residual_connection_post_layernorm")
    facts = sizes(f, fourfold=True, tied=True) | BIASED
    facts |= {"positions": "alibi", "gated_mlp": False, "hidden_act": "gelu_tanh", "embedding_norm": True}
    return ModelConfig(**facts, norm_bias=True, rms_norm_eps=f.positive("layer_norm_epsilon", 1e-5))


_SIZES = {name: TINY[name] for name in ("hidden_size", "vocab_size", "bos_token_id", "eos_token_id")}
ARCHITECTURE = Architecture(
    ("bloom",),
    read,
    tiny={
        "bloom": {"model_type": "bloom", **_SIZES, "n_layer": 2, "n_head": 4},
        "bloom of three heads": {"model_type": "bloom", **_SIZES, "n_layer": 2, "n_head": 3, "tie_word_embeddings": False},
    },
    names={
        "model.embed_tokens": "transformer.word_embeddings",
        "model.embed_norm": "transformer.word_embeddings_layernorm",
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        **{f"self_attn.{x}_proj": "self_attention.query_key_value" for x in "qkv"},
        "self_attn.o_proj": "self_attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    grouped=True,
)

SHAPES = few_layers("four layers of bloom-560m, 64k tokens", "bloom-560m", 4, vocab_size=1 << 16)
BLOOM = Procedure(bloom, drawn_from(ARCHITECTURE), "arXiv:2211.05100", same=same_logits, cost=decoder_cost, shapes=SHAPES)
