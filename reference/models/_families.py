"""Families that are described well enough to be priced, though no reference model here runs them.

Each reads the fields of its own `config.json` into the one `ModelConfig`; what a family never states (biases, norms, gates)
is written here with its source. Letters: D model width, F feed-forward width, H head width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import Fields, GatedDelta, LatentAttention, ModelConfig
from llmlab.reference.models._read import size, sizes

Traits = dict[str, Any]

_LAYER_NORM: Traits = {"norm_bias": True, "gated_mlp": False}
_BIASED: Traits = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}

_TRAITS: dict[str, Traits] = {
    # Norms of queries and keys; sandwich norms (Gemma 2, arXiv:2408.00118; Gemma 3, arXiv:2503.19786).
    "gemma2": {"norms_per_layer": 4, "tie_word_embeddings": True},
    "gemma3_text": {"norms_per_layer": 4, "tie_word_embeddings": True, "qk_norm": True},
    "internlm": {},
    "internlm2": {},
    "nemotron": {"norm_bias": True, "gated_mlp": False},  # squared ReLU (arXiv:2406.11704)
    "cohere": {"tie_word_embeddings": True, "parallel_block": True, "norms_per_layer": 1},
    "dbrx": {},
    # GPT-3 (arXiv:2005.14165) and OPT (arXiv:2205.01068): LayerNorm, biases everywhere, learned positions.
    "gpt3": _LAYER_NORM | _BIASED | {"tie_word_embeddings": True},
    "gpt_bigcode": _LAYER_NORM | _BIASED | {"tie_word_embeddings": True},
    "gptj": _LAYER_NORM | {"parallel_block": True, "norms_per_layer": 1, "mlp_bias": True, "head_bias": True},
    "deepseek_v2": {},
    "deepseek_v32": {},
    "kimi_k2": {},
    "gpt_oss": _BIASED | {"mlp_bias": False, "expert_bias": True},
    "minimax_m2": {"qk_norm": True},
    "glm4_moe": {},
    "llama4_text": {},
    "qwen3_next": {"qk_norm": True, "query_gate": True, "shared_expert_gate": True},
    "qwen3_5_text": {"qk_norm": True, "query_gate": True},
    "qwen3_5_moe_text": {"qk_norm": True, "query_gate": True, "shared_expert_gate": True},
}

PRICED_TYPES = tuple(_TRAITS)
"""Families that can be priced beside those that have a file of their own."""


def read_priced(f: Fields, model_type: str) -> ModelConfig:
    """Read the `config.json` of a family in `PRICED_TYPES`.

    Raises:
        InputError: a field is missing, of the wrong type, out of range, or contradicts another.
    """
    traits = dict(_TRAITS[model_type])
    facts = sizes(f, fourfold=not traits.get("gated_mlp", True))
    layers, F = facts["num_hidden_layers"], facts["intermediate_size"]
    if model_type == "gpt_bigcode" and f.flag("multi_query", True):
        facts["num_key_value_heads"] = 1
    tied = f.flag("tie_word_embeddings", bool(traits.get("tie_word_embeddings", False)))
    facts |= traits | {"tie_word_embeddings": tied, "runnable": False}
    for reader in _READERS.get(model_type, ()):
        facts |= reader(f, layers, F)
    return ModelConfig(**facts)


def latent(f: Fields, layers: int, F: int) -> dict[str, Any]:
    sparse = f.d.get("index_topk") is not None
    return {
        "latent": LatentAttention(
            query_rank=f.count("q_lora_rank", 0),
            kv_rank=f.count("kv_lora_rank"),
            nope_width=f.count("qk_nope_head_dim"),
            rope_width=f.count("qk_rope_head_dim"),
            value_width=f.count("v_head_dim"),
            index_topk=f.count("index_topk") if sparse else 0,
            index_heads=f.count("index_n_heads") if sparse else 0,
            index_width=f.count("index_head_dim") if sparse else 0,
        )
    }


def _mixture(
    width: str, *, first_dense: bool = False, every: str = "", default_every: int = 1
) -> Callable[..., dict[str, Any]]:
    """Experts of width `width`; the first k layers dense, or every n-th sparse; shared experts as wide as so many routed."""

    def read(f: Fields, layers: int, F: int) -> dict[str, Any]:
        E, k = size(f, "num_experts"), f.count("num_experts_per_tok")
        if k > E:
            raise InputError(f.where, "num_experts_per_tok", k, f"must be at most {E} experts")
        M = f.count(width)
        dense = f.count("first_k_dense_replace", 0, least=0) if first_dense else 0
        step = f.count(every, default_every) if every else 1
        return {
            "num_experts": E,
            "num_experts_per_tok": k,
            "moe_intermediate_size": M,
            "shared_expert_intermediate_size": f.count("n_shared_experts", 0, least=0) * M,
            "sparse_layers": tuple(layer >= dense and (layer + 1) % step == 0 for layer in range(layers)),
        }

    return read


def _llama4(f: Fields, layers: int, F: int) -> dict[str, Any]:
    """One shared expert beside each routed one; dense layers are wider; three of four layers see chunks of the context."""
    full = f.count("no_rope_layer_interval", 4)
    return {
        "shared_expert_intermediate_size": F,
        "intermediate_size": f.count("intermediate_size_mlp", F),
        "sliding_window": f.count("attention_chunk_size", 8192),
        "windowed_layers": tuple((layer + 1) % full != 0 for layer in range(layers)),
    }


def _alternating(window: int, period: int) -> Callable[..., dict[str, Any]]:
    """Every `period`-th layer sees everything, the others a window; `layer_types` says so where it is given."""

    def read(f: Fields, layers: int, F: int) -> dict[str, Any]:
        kinds = f.d.get("layer_types")
        every = f.count("sliding_window_pattern", period)
        if isinstance(kinds, list) and len(kinds) == layers:
            windowed = tuple(kind == "sliding_attention" for kind in kinds)
        else:
            windowed = tuple((layer + 1) % every != 0 for layer in range(layers))
        return {"sliding_window": f.count("sliding_window", window), "windowed_layers": windowed}

    return read


def _delta(f: Fields, layers: int, F: int) -> dict[str, Any]:
    kinds, every = f.d.get("layer_types"), f.count("full_attention_interval", 4)
    linear = (
        tuple(kind == "linear_attention" for kind in kinds)
        if isinstance(kinds, list) and len(kinds) == layers
        else tuple((layer + 1) % every != 0 for layer in range(layers))
    )
    return {
        "linear": GatedDelta(
            key_heads=f.count("linear_num_key_heads"),
            value_heads=f.count("linear_num_value_heads"),
            key_width=f.count("linear_key_head_dim"),
            value_width=f.count("linear_value_head_dim"),
            kernel=f.count("linear_conv_kernel_dim", 4),
        ),
        "linear_layers": linear,
    }


def _shared_width(f: Fields, layers: int, F: int) -> dict[str, Any]:
    return {"shared_expert_intermediate_size": f.count("shared_expert_intermediate_size", 0, least=0)}


def _positions(f: Fields, layers: int, F: int) -> dict[str, Any]:
    return {"learned_positions": size(f, "max_position_embeddings", 2048), "positions": "learned"}


def _biases(f: Fields, layers: int, F: int) -> dict[str, Any]:
    bias = f.flag("attention_bias", f.flag("bias", False))
    return {"attention_bias": bias, "attention_output_bias": bias and f.text("model_type") == "internlm"}


def _norm_of_heads(f: Fields, layers: int, F: int) -> dict[str, Any]:
    return {"qk_norm": f.flag("use_qk_norm", False), "attention_bias": f.flag("attention_bias", False)}


_DEEPSEEK = (latent, _mixture("moe_intermediate_size", first_dense=True))
_READERS: dict[str, tuple[Callable[..., dict[str, Any]], ...]] = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "gpt_oss": (_mixture("intermediate_size"), _alternating(128, 2)),
    "minimax_m2": (_mixture("intermediate_size"),),
    "dbrx": (_mixture("intermediate_size"),),
    "glm4_moe": (_mixture("moe_intermediate_size", first_dense=True), _norm_of_heads),
    "llama4_text": (_mixture("intermediate_size", every="interleave_moe_layer_step"), _llama4),
    "gemma2": (_alternating(4096, 2),),
    "gemma3_text": (_alternating(1024, 6),),
    "internlm": (_biases,),
    "internlm2": (_biases,),
    "qwen3_next": (_mixture("moe_intermediate_size"), _shared_width, _delta),
    "qwen3_5_text": (_delta,),
    "qwen3_5_moe_text": (_mixture("moe_intermediate_size"), _shared_width, _delta),
    "gpt3": (_positions,),
    "gpt_bigcode": (_positions,),
}
