"""Baichuan and Baichuan 2 (Yang et al. 2023, arXiv:2309.10305, section 2).

Llama whose files pack queries, keys and values in one (`W_pack`). The 7B rotates positions; the 13B has linear biases
instead, told by its file giving `model_max_length` and no `max_position_embeddings`. Baichuan 2, told by its vocabulary,
scales the rows of its output matrix to length one (section 2.4, NormHead). Axes: B batch, T position, V vocabulary.
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

SECOND_VOCABULARY = 125696
"""Tokens of Baichuan 2; the first has 64000."""


def baichuan(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV. `_blocks.decoder` continues them with a cache."""
    return forward(config, weights, ids_BT)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`; `normalized_head` may say what else the vocabulary does."""
    positions = "rotary" if f.d.get("max_position_embeddings") is not None else "alibi"
    normalized = f.flag("normalized_head", f.count("vocab_size") == SECOND_VOCABULARY)
    return ModelConfig(**llama_like(f, longest=4096), positions=positions, normalized_head=normalized)


_VARIANTS: dict[str, dict[str, Any]] = {
    "baichuan-7b": {"max_position_embeddings": 64, "num_attention_heads": 3},
    "baichuan-13b": {"model_max_length": 64, "num_attention_heads": 4},
    "baichuan2-13b": {"model_max_length": 64, "num_attention_heads": 3, "normalized_head": True},
}
ARCHITECTURE = Architecture(
    ("baichuan",),
    read,
    tiny("baichuan", _VARIANTS),
    names={f"self_attn.{x}_proj": "self_attn.W_pack" for x in "qkv"},
)

SHAPES = few_layers("a layer of baichuan2-7b, 16k tokens", "Baichuan2-7B-Base", 1, vocab_size=1 << 14)
BAICHUAN = Procedure(baichuan, drawn_from(ARCHITECTURE), "arXiv:2309.10305", same=same_logits, cost=decoder_cost, shapes=SHAPES)
