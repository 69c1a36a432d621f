"""Llama 1, 2 and 3 (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Grattafiori et al. 2024, arXiv:2407.21783).

A pre-norm transformer: RMSNorm, rotary positions (Llama 3.1 scales their frequencies), grouped-query attention, SwiGLU.
The blocks are shared with the family's other models. Axes: B batch, T new position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmlab.reference.models._architecture import Architecture, tiny
from llmlab.reference.models._blocks import Cache, Seen, decoder, decoder_cost, drawn_from, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._read import llama_like
from llmlab.reference.models._weights import Weights, check_weights, random_weights
from llmlab.reference.op import Procedure


def llama(config: ModelConfig, weights: Weights, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of whole sequences; return logits_BTV in the weights' dtype.

    Weights go by their Hugging Face names and are [out, in]; rotated pairs are half-split (r, r + H/2), as in those files.

    Raises:
        ValueError: another model_type, a weight that is missing or misshapen, a token id outside the vocabulary.

    >>> config = ModelConfig("one", "llama", 2, 2, 1, 1, 1, 2, vocab_size=3)
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> llama(config, zeros, np.array([[0, 2]])).shape
    (1, 2, 3)
    """
    check_weights(config, weights)
    return llama_step(config, weights, ids_BT)[0]


def llama_step(
    config: ModelConfig, weights: Weights, ids_BT: np.ndarray, past: Cache | None = None
) -> tuple[np.ndarray, list[Seen]]:
    """Continue sequences by T tokens; return (logits_BTV, present), `present` being the next call's `past`.

    Prefill is the first call, decode a call with T = 1; cutting a text anywhere gives the same logits.

    Raises:
        ValueError: another model_type, a token id outside the vocabulary.
    """
    if config.model_type != "llama":
        raise ValueError(f"{config.name}: model_type={config.model_type!r} is not llama")
    return decoder(config, weights, ids_BT, past)


def read(f: Fields) -> ModelConfig:
    """Read a `config.json`."""
    bias = f.flag("attention_bias", False)
    biases: dict[str, Any] = {"attention_bias": bias, "attention_output_bias": bias, "mlp_bias": f.flag("mlp_bias", False)}
    return ModelConfig(**llama_like(f), **biases)


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "llama-2": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "llama-3": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_theta": 500000.0, **_LLAMA3_ROPE},
    },
    "tied": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True},
    "biases": {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
}
ARCHITECTURE = Architecture(("llama",), read, tiny("llama", _VARIANTS, rms_norm_eps=1e-5))
tiny_config = ARCHITECTURE.tiny_config


def _prefill(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    facts = {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": 49152, "tie_word_embeddings": True, **sizes}
    config = ModelConfig.from_dict(facts, "four layers of smollm-135m")
    ids_BT = rng.integers(0, config.vocab_size, (1, 128))
    return {"config": config, "weights": random_weights(config, rng), "ids_BT": ids_BT}


LLAMA = Procedure(
    reference=llama,
    examples=drawn_from(ARCHITECTURE),
    paper="arXiv:2302.13971",
    same=same_logits,
    cost=decoder_cost,
    shapes={"four layers of smollm-135m, prefill 128": _prefill},
)
