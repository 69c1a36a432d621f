"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3).

Pre-norm with LayerNorm, learned positions, GELU by tanh, biases everywhere, the output matrix tied to the embedding. Files
store matrices [in, out] (Conv1D) and queries, keys and values in one. Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.models._architecture import Architecture
from llmlab.reference.models._blocks import decoder_cost, drawn_from, few_layers, forward, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import BIASED, activation, sizes
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


def gpt2(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`; scaling attention by the layer's number (`scale_attn_by_inverse_layer_idx`) is refused."""
    f.refuse("scale_attn_by_inverse_layer_idx")
    facts = sizes(f, fourfold=True, longest=1024, tied=True) | BIASED
    facts |= {"positions": "learned", "learned_positions": facts["max_position_embeddings"], "gated_mlp": False}
    facts |= {"norm_bias": True, "rms_norm_eps": f.positive("layer_norm_epsilon", 1e-5)}
    return ModelConfig(**facts, hidden_act=activation(f, "activation_function", "gelu_new"))


_SIZES = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 37, "n_positions": 16}
ARCHITECTURE = Architecture(
    ("gpt2",),
    read,
    tiny={
        "gpt2": {**_SIZES, "bos_token_id": None, "eos_token_id": None},
        "gpt2 untied": {**_SIZES, "tie_word_embeddings": False, "n_inner": 29, "bos_token_id": None, "eos_token_id": None},
    },
    names={
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        **{f"self_attn.{x}_proj": "attn.c_attn" for x in "qkv"},
        "self_attn.o_proj": "attn.c_proj",
        "post_attention_layernorm": "ln_2",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    transposed=True,
)

SHAPES = few_layers("four layers of gpt2-124m", "gpt2", 4)
GPT2 = Procedure(gpt2, drawn_from(ARCHITECTURE), "Radford et al. 2019", same=same_logits, cost=decoder_cost, shapes=SHAPES)
