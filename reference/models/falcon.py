"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867, section 4).

Attention and feed-forward stand side by side: behind one LayerNorm in the 7B, which has a single key/value head, behind one
each in the 40B and 180B. The RW models are sequential and have linear biases, which they divide by the root of the head
width like the scores. Files hold the queries of a group, its key and its value together. Axes: B batch, T position,
V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import TINY, Architecture
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import BIASED, activation, rotary, sizes
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def falcon(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    facts = sizes(f, fourfold=True, tied=True) | dict.fromkeys(BIASED, f.flag("bias", False))
    new = f.flag("new_decoder_architecture", False)
    if not new:
        facts["num_key_value_heads"] = 1 if f.flag("multi_query", True) else facts["num_attention_heads"]
    parallel = new or f.flag("parallel_attn", True)
    norms = f.count("num_ln_in_parallel_attn", 2 if new else 1) if parallel else 2
    if f.flag("alibi", False):
        facts |= {"positions": "alibi", "scaled_alibi": True}
    else:
        facts |= rotary(f, facts["head_dim"], facts["max_position_embeddings"])
    facts |= {"norm_bias": True, "rms_norm_eps": f.positive("layer_norm_epsilon", 1e-5), "gated_mlp": False}
    return ModelConfig(**facts, parallel_block=parallel, norms_per_layer=norms, hidden_act=activation(f, "activation", "gelu"))


_VARIANTS: dict[str, dict[str, Any]] = {
    "falcon-7b": {"num_attention_heads": 3},
    "falcon-40b": {"num_attention_heads": 6, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon2-11b": {
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
        "ffn_hidden_size": 29,
    },
    "falcon-rw": {"num_attention_heads": 4, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
}
_TWO_NORMS = {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}
_SIZES = {name: value for name, value in TINY.items() if name != "intermediate_size"}
ARCHITECTURE = Architecture(
    ("falcon",),
    read,
    {name: {"model_type": "falcon", **_SIZES, **more} for name, more in _VARIANTS.items()},
    names={
        "model.embed_tokens": "transformer.word_embeddings",
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        **{f"self_attn.{x}_proj": "self_attention.query_key_value" for x in "qkv"},
        "self_attn.o_proj": "self_attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    names_of=lambda config: _TWO_NORMS if config.parallel_block and config.norms_per_layer == 2 else {},
    grouped=True,
)

SHAPES = few_layers("a layer of falcon-7b, 16k tokens", "falcon-7b", 1, vocab_size=1 << 14)
FALCON = Procedure(falcon, drawn_from(ARCHITECTURE), "arXiv:2311.16867", same=same_logits, cost=decoder_cost, shapes=SHAPES)
