"""transformers' LlamaForCausalLM with the same configuration and weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models.llama import LLAMA


@oracle(LLAMA, library="transformers.LlamaForCausalLM", needs=("torch", "transformers"))
def llama(config: ModelConfig, weights: Mapping[str, np.ndarray], ids_BT: np.ndarray) -> np.ndarray:
    import torch

    model = causal_lm(config, weights, dtype=torch.float64)
    with torch.no_grad():
        return model(torch.from_numpy(ids_BT)).logits.numpy()


def causal_lm(config: ModelConfig, weights: Mapping[str, np.ndarray], *, dtype):  # type: ignore[no-untyped-def]
    """The library's model holding these weights, in `dtype`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": config.rope.kind, "rope_theta": config.rope.theta}
    if config.rope.kind == "llama3":
        rope |= {
            "factor": config.rope.factor,
            "low_freq_factor": config.rope.low_freq_factor,
            "high_freq_factor": config.rope.high_freq_factor,
            "original_max_position_embeddings": config.rope.original_max_position_embeddings,
        }
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        rope_parameters=rope,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(theirs).to(dtype).eval()
    given = {name: torch.tensor(array).to(dtype) for name, array in weights.items()}
    if config.tie_word_embeddings:
        given["lm_head.weight"] = given["model.embed_tokens.weight"]
    model.load_state_dict(given)
    return model
