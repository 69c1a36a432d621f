"""Families that are described well enough to be priced, though no reference model here runs them.

Each reads the fields of its own `config.json` into the one `ModelConfig`; what a family never states (biases, norms, gates)
is written here with its source. Names of weights are the Llama family's, whatever the files call them, for their sizes are
all that is asked. Letters: D model width, F feed-forward width, N query heads, K key/value heads, H head width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import Fields, GatedDelta, LatentAttention, ModelConfig, gated_shapes


def layer_shapes(c: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's weights; matrices are [out, in]."""
    D = c.hidden_size
    shapes = _attention_shapes(c, layer)
    for index in range(c.norms_per_layer):
        shapes[f"norm_{index}.weight"] = (D,)
        if c.norm_bias:
            shapes[f"norm_{index}.bias"] = (D,)
    if c.is_sparse(layer):
        E, M = c.num_experts, c.moe_intermediate_size
        shapes |= {"mlp.gate.weight": (E, D), "mlp.experts.gate_up_proj": (E, 2 * M, D), "mlp.experts.down_proj": (E, D, M)}
        if c.expert_bias:
            shapes |= {"mlp.gate.bias": (E,), "mlp.experts.gate_up_bias": (E, 2 * M), "mlp.experts.down_bias": (E, D)}
        if S := c.shared_expert_intermediate_size:
            shapes |= gated_shapes("mlp.shared_expert.", D, S, bias=False)
            if c.shared_expert_gate:
                shapes["mlp.shared_expert_gate.weight"] = (1, D)
    elif c.gated_mlp:
        shapes |= gated_shapes("mlp.", D, c.intermediate_size, bias=c.mlp_bias)
    else:
        F = c.intermediate_size
        shapes |= {"mlp.up_proj.weight": (F, D), "mlp.down_proj.weight": (D, F)}
        if c.mlp_bias:
            shapes |= {"mlp.up_proj.bias": (F,), "mlp.down_proj.bias": (D,)}
    return shapes


def _attention_shapes(c: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    D, N, H = c.hidden_size, c.num_attention_heads, c.head_dim
    if c.is_linear(layer) and (g := c.linear):
        keys, values = g.key_heads * g.key_width, g.value_heads * g.value_width
        return {
            "linear_attn.qkvz_proj.weight": (2 * keys + 2 * values, D),
            "linear_attn.ba_proj.weight": (2 * g.value_heads, D),
            "linear_attn.conv.weight": (2 * keys + values, g.kernel),
            "linear_attn.decay": (2, g.value_heads),
            "linear_attn.norm.weight": (g.value_width,),
            "linear_attn.out_proj.weight": (D, values),
        }
    if m := c.latent:
        wide = m.nope_width + m.rope_width
        shapes: dict[str, tuple[int, ...]] = (
            {
                "self_attn.q_a_proj.weight": (m.query_rank, D),
                "self_attn.q_a_norm.weight": (m.query_rank,),
                "self_attn.q_b_proj.weight": (N * wide, m.query_rank),
            }
            if m.query_rank
            else {"self_attn.q_proj.weight": (N * wide, D)}
        )
        if m.index_topk:
            shapes |= {
                "self_attn.indexer.q_proj.weight": (m.index_heads * m.index_width, m.query_rank),
                "self_attn.indexer.k_proj.weight": (m.index_width, D),
                "self_attn.indexer.weights_proj.weight": (m.index_heads, D),
            }
        return shapes | {
            "self_attn.kv_a_proj.weight": (m.cached_width, D),
            "self_attn.kv_a_norm.weight": (m.kv_rank,),
            "self_attn.kv_b_proj.weight": (N * (m.nope_width + m.value_width), m.kv_rank),
            "self_attn.o_proj.weight": (D, N * m.value_width),
        }
    shapes = {}
    for name, width in (("q", c.query_width * (2 if c.query_gate else 1)), ("k", c.key_value_width), ("v", c.key_value_width)):
        shapes[f"self_attn.{name}_proj.weight"] = (width, D)
        if c.attention_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (width,)
    if c.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (H,), "self_attn.k_norm.weight": (H,)}
    shapes["self_attn.o_proj.weight"] = (D, c.query_width)
    if c.attention_output_bias:
        shapes["self_attn.o_proj.bias"] = (D,)
    if c.model_type == "gpt_oss":
        shapes["self_attn.sinks"] = (N,)
    return shapes


Traits = dict[str, Any]

_LAYER_NORM: Traits = {"norm_bias": True, "gated_mlp": False}
_BIASED: Traits = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}

_TRAITS: dict[str, Traits] = {
    # Norms of queries and keys; sandwich norms (Gemma 2, arXiv:2408.00118; Gemma 3, arXiv:2503.19786).
    "gemma2": {"norms_per_layer": 4, "tie_word_embeddings": True},
    "gemma3_text": {"norms_per_layer": 4, "tie_word_embeddings": True, "qk_norm": True},
    "phi3": {},
    "internlm": {},
    "internlm2": {},
    "nemotron": {"norm_bias": True, "gated_mlp": False},  # squared ReLU (arXiv:2406.11704)
    "cohere": {"tie_word_embeddings": True, "parallel_block": True, "norms_per_layer": 1},
    "dbrx": {},
    # GPT-3 (arXiv:2005.14165) and OPT (arXiv:2205.01068): LayerNorm, biases everywhere, learned positions.
    "opt": _LAYER_NORM | _BIASED | {"tie_word_embeddings": True},
    "gpt3": _LAYER_NORM | _BIASED | {"tie_word_embeddings": True},
    "bloom": _LAYER_NORM | _BIASED | {"tie_word_embeddings": True},  # ALiBi (arXiv:2211.05100)
    "gpt_bigcode": _LAYER_NORM | _BIASED | {"tie_word_embeddings": True},
    "gpt_neox": _LAYER_NORM | _BIASED | {"parallel_block": True},
    "gptj": _LAYER_NORM | {"parallel_block": True, "norms_per_layer": 1, "mlp_bias": True, "head_bias": True},
    "falcon": _LAYER_NORM | {"parallel_block": True},
    "deepseek_v2": {},
    "deepseek_v3": {},
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
"""Families that can be priced beside those of `MODEL_TYPES`."""

# Other names of a field, tried in turn: GPT-J, BLOOM, Falcon and DBRX have their own.
_NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
    "num_experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
}


def _size(f: Fields, field: str, *default: Any) -> Any:
    """A whole number under any of its names."""
    for name in _NAMES[field]:
        if f.d.get(name) is not None:
            return f.count(name)
    return f.count(field, *default)


def read_priced(f: Fields, model_type: str) -> ModelConfig:
    """Read the `config.json` of a family in `PRICED_TYPES`.

    Raises:
        InputError: a field is missing, of the wrong type, out of range, or contradicts another.
    """
    traits = dict(_TRAITS[model_type])
    layers, D = _size(f, "num_hidden_layers"), _size(f, "hidden_size")
    if layers > 10_000:
        raise InputError(f.where, "num_hidden_layers", layers, "is too large to be a number of layers")
    N, V = _size(f, "num_attention_heads"), f.count("vocab_size")
    K = _key_value_heads(f, model_type, N)
    if N % K:
        raise InputError(f.where, "num_key_value_heads", K, f"must divide num_attention_heads={N}")
    H = f.count("head_dim", 0)
    if not H:
        if D % N:
            raise InputError(f.where, "num_attention_heads", N, f"must divide hidden_size={D} when head_dim is not given")
        H = D // N
    four = not traits.get("gated_mlp", True)
    F = _size(f, "intermediate_size", *((4 * D,) if four else ()))
    longest = _size(f, "max_position_embeddings", 2048)
    traits["tie_word_embeddings"] = f.flag("tie_word_embeddings", bool(traits.get("tie_word_embeddings", False)))
    for reader in _READERS.get(model_type, ()):
        traits |= reader(f, layers, F)
    bos = f.ids("bos_token_id", V) if not isinstance(f.d.get("bos_token_id"), bool) else ()
    return ModelConfig(
        name=f.where,
        model_type=model_type,
        hidden_size=D,
        intermediate_size=int(traits.pop("intermediate_size", F)),
        num_hidden_layers=layers,
        num_attention_heads=N,
        num_key_value_heads=K,
        head_dim=H,
        vocab_size=V,
        max_position_embeddings=longest,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=f.ids("eos_token_id", V),
        dtype=f.text("dtype", f.text("torch_dtype", "bfloat16")),
        runnable=False,
        **traits,
    )


def _key_value_heads(f: Fields, model_type: str, N: int) -> int:
    if model_type == "falcon" and not f.flag("new_decoder_architecture", False):
        return 1 if f.flag("multi_query", True) else N
    if model_type == "gpt_bigcode":
        return 1 if f.flag("multi_query", True) else N
    for name in ("num_key_value_heads", "num_kv_heads", "kv_n_heads"):
        if f.d.get(name) is not None:
            return int(f.count(name))
    return N


def _latent(f: Fields, layers: int, F: int) -> dict[str, Any]:
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
        E, k = _size(f, "num_experts"), f.count("num_experts_per_tok")
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
    """OPT keeps two rows of its table free."""
    return {"learned_positions": _size(f, "max_position_embeddings", 2048) + (2 if f.text("model_type") == "opt" else 0)}


def _falcon(f: Fields, layers: int, F: int) -> dict[str, Any]:
    """Two norms per layer in the newer architecture (40B, 180B), one in the 7B; biases nowhere."""
    new = f.flag("new_decoder_architecture", False)
    return {"norms_per_layer": 2 if new else 1, "attention_bias": f.flag("bias", False)}


def _biases(f: Fields, layers: int, F: int) -> dict[str, Any]:
    bias = f.flag("attention_bias", f.flag("bias", False))
    return {"attention_bias": bias, "attention_output_bias": bias and f.text("model_type") == "internlm"}


def _norm_of_heads(f: Fields, layers: int, F: int) -> dict[str, Any]:
    return {"qk_norm": f.flag("use_qk_norm", False), "attention_bias": f.flag("attention_bias", False)}


_DEEPSEEK = (_latent, _mixture("moe_intermediate_size", first_dense=True))
_READERS: dict[str, tuple[Callable[..., dict[str, Any]], ...]] = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
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
    "opt": (_positions,),
    "gpt3": (_positions,),
    "gpt_bigcode": (_positions,),
    "falcon": (_falcon,),
}
