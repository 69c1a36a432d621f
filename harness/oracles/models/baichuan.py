"""transformers has no Baichuan: its Llama for the 7B, and for the 13B its Llama layers under BLOOM's biases as the mask.

Either way queries, keys and values are taken out of `W_pack` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models.baichuan import BAICHUAN


@oracle(BAICHUAN, library="transformers.LlamaForCausalLM with BLOOM's ALiBi", needs=("torch", "transformers"))
def baichuan(config: ModelConfig, weights: Mapping[str, np.ndarray], ids_BT: np.ndarray) -> np.ndarray:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = config.num_attention_heads
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        rms_norm_eps=config.rms_norm_eps,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(theirs).to(torch.float64).eval()
    model.load_state_dict(_as_llama(config, weights))
    ids = torch.from_numpy(ids_BT)
    with torch.no_grad():
        if config.positions == "rotary":
            return model(ids).logits.numpy()
        return _with_biases(model, ids, heads).numpy()


def _as_llama(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    given = {}
    for name, array in weights.items():
        if name.endswith("W_pack.weight"):
            for part, rows in zip("qkv", np.split(array, 3)):
                given[name.replace("W_pack", f"{part}_proj")] = torch.tensor(rows)
        else:
            given[name] = torch.tensor(array)
    if config.normalized_head:
        given["lm_head.weight"] = torch.nn.functional.normalize(given["lm_head.weight"])
    return given


def _with_biases(model: Any, ids: Any, heads: int) -> Any:
    """Its layers one by one, with no rotation and a mask that holds the biases."""
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    B, T = ids.shape
    alibi = build_alibi_tensor(torch.ones(B, T), heads, torch.float64).view(B, heads, 1, T)
    mask = alibi + torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)
    still = torch.ones(1, T, 1, dtype=torch.float64), torch.zeros(1, T, 1, dtype=torch.float64)
    x = model.model.embed_tokens(ids)
    for layer in model.model.layers:
        x = layer(x, attention_mask=mask, position_embeddings=still)
    return model.lm_head(model.model.norm(x))
