"""What the `config.json` of most families has in common: sizes, rotary positions, windows, experts, activations.

Each function returns fields of `ModelConfig` by name, for an architecture's own file to put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import Fields, Rope

# Other names of a field, tried in turn: GPT-2, GPT-J, BLOOM, Falcon, OPT and DBRX have their own.
_NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "kv_n_heads"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "model_max_length"),
    "num_experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
}


BIASED: dict[str, Any] = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
"""Biases in every matrix of a layer."""


def size(f: Fields, field: str, *default: Any) -> Any:
    """A whole number under any of its names."""
    for name in _NAMES[field]:
        if f.d.get(name) is not None:
            return f.count(name)
    return f.count(field, *default)


def sizes(
    f: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int = 0,
    fourfold: bool = False,
    longest: int = 2048,
    tied: bool = False,
) -> dict[str, Any]:
    """Sizes, token ids, tied or not, and dtype.

    Args:
        f: the file.
        kv_heads: key/value heads where the file is silent; None for as many as query heads.
        head_dim: head width where the file is silent; 0 for the model width shared out.
        fourfold: the feed-forward is four times the model width where the file is silent.
        longest: context where the file is silent.
        tied: whether output matrix and embedding are one where the file is silent.

    Raises:
        InputError: a field is missing, of the wrong type, out of range, or contradicts another.
    """
    layers, D, N = size(f, "num_hidden_layers"), size(f, "hidden_size"), size(f, "num_attention_heads")
    if layers > 10_000:
        raise InputError(f.where, "num_hidden_layers", layers, "is too large to be a number of layers")
    F, V = size(f, "intermediate_size", *((4 * D,) if fourfold else ())), f.count("vocab_size")
    given = any(name in f.d for name in _NAMES["num_key_value_heads"])  # null means one per query head
    K = size(f, "num_key_value_heads", N) if given else kv_heads or N
    if N % K:
        raise InputError(f.where, "num_key_value_heads", K, f"must divide num_attention_heads={N}")
    H = f.count("head_dim", head_dim)
    if not H:
        if D % N:
            raise InputError(f.where, "num_attention_heads", N, f"must divide hidden_size={D} when head_dim is not given")
        H = D // N
    bos = f.ids("bos_token_id", V) if not isinstance(f.d.get("bos_token_id"), bool) else ()
    return {
        "name": f.where,
        "model_type": f.text("model_type"),
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": layers,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "vocab_size": V,
        "max_position_embeddings": size(f, "max_position_embeddings", longest),
        "tie_word_embeddings": f.flag("tie_word_embeddings", tied),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": f.ids("eos_token_id", V),
        "dtype": f.text("dtype", f.text("torch_dtype", "bfloat16")),
    }


def llama_like(
    f: Fields, *, theta: float = 10000.0, share: float | None = None, eps: float = 1e-6, **more: Any
) -> dict[str, Any]:
    """What every family with RMSNorm, rotary positions and SwiGLU has; `more` goes to `sizes`, the rest to `rotary`."""
    facts = sizes(f, **more)
    facts |= {"hidden_act": activation(f, known=("silu",)), "rms_norm_eps": f.positive("rms_norm_eps", eps)}
    return facts | rotary(f, facts["head_dim"], facts["max_position_embeddings"], theta=theta, share=share)


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(f: Fields, field: str = "hidden_act", default: str = "silu", known: Sequence[str] = tuple(_ACTIVATIONS)) -> str:
    """The name `layers.activations` knows an activation by.

    Raises:
        InputError: not one of `known`.
    """
    name = f.text(field, default)
    if name not in known:
        raise InputError(f.where, field, name, f"must be {' or '.join(known)}")
    return _ACTIVATIONS[name]


_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def rotary(f: Fields, head_width: int, longest: int, *, theta: float = 10000.0, share: float | None = None) -> dict[str, Any]:
    """Rotary base, scaling and the part of a head that is rotated.

    Transformers 4 keeps `rope_theta` outside `rope_scaling`; transformers 5 keeps all in `rope_parameters`.

    Args:
        f: the file.
        head_width: of queries and keys.
        longest: context, which is the original one where nothing else is said.
        theta: base where the file is silent.
        share: part of a head that is rotated where the file is silent; None where the family always rotates all of it.

    Raises:
        InputError: an unknown scaling, a number that is none, or an odd width to rotate.
    """
    name = "rope_parameters" if f.d.get("rope_parameters") is not None else "rope_scaling"
    given = f.d.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f.where, name, given, "must be a JSON object or null")
    r = Fields(given or {}, f"{f.where}: {name}")
    theta = r.positive("rope_theta", f.positive("rope_theta", f.positive("rotary_emb_base", theta)))
    part = r.positive("partial_rotary_factor", f.positive("partial_rotary_factor", f.positive("rotary_pct", share or 1.0)))
    if share is None and part != 1.0:
        raise InputError(r.where, "partial_rotary_factor", part, "must be 1 in this family")
    if part > 1.0:
        raise InputError(r.where, "partial_rotary_factor", part, "must be at most 1")
    width = int(head_width * part)
    if width % 2 or not width:
        raise InputError(f.where, "head_dim", head_width, f"must be even: positions rotate pairs of {width} coordinates")
    return {"rope": _scaling(f, r, theta, longest), "rotary_width": 0 if width == head_width else width}


def _scaling(f: Fields, r: Fields, theta: float, longest: int) -> Rope:
    kind = r.text("rope_type", r.text("type", "default"))
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in _ROPE_KINDS:
        raise InputError(r.where, "rope_type", kind, f"is none of {', '.join(_ROPE_KINDS)}")
    if kind == "default":
        return Rope(theta)
    original = r.count("original_max_position_embeddings", f.count("original_max_position_embeddings", 0))
    if kind == "longrope":
        original = original or longest
        return Rope(
            theta,
            kind,
            r.positive("factor", longest / original),
            original_max_position_embeddings=original,
            attention_factor=r.positive("attention_factor", 0.0),
            short_factor=_numbers(r, "short_factor"),
            long_factor=_numbers(r, "long_factor"),
        )
    if kind != "llama3":
        return Rope(
            theta,
            kind,
            r.positive("factor"),
            original_max_position_embeddings=original or longest,
            attention_factor=r.positive("attention_factor", 0.0),
            beta_fast=r.positive("beta_fast", 32.0),
            beta_slow=r.positive("beta_slow", 1.0),
            mscale=r.positive("mscale", 0.0),
            mscale_all_dim=r.positive("mscale_all_dim", 0.0),
            truncate=r.flag("truncate", True),
        )
    low, high = r.positive("low_freq_factor"), r.positive("high_freq_factor")
    if not low < high:
        raise InputError(r.where, "low_freq_factor", low, f"must be below high_freq_factor={high}")
    if not original:
        raise InputError(r.where, "original_max_position_embeddings", None, "is missing")
    return Rope(theta, kind, r.positive("factor"), low, high, original)


def _numbers(f: Fields, field: str) -> tuple[float, ...]:
    values = f.d.get(field, [])
    if not isinstance(values, list | tuple) or not all(type(v) in (int, float) and 0 < v < 1e30 for v in values):
        raise InputError(f.where, field, values, "must be a list of positive numbers")
    return tuple(float(value) for value in values)


def windows(f: Fields, layers: int, *, default: int | None = None, first: int = 0) -> dict[str, Any]:
    """The sliding window and the layers it holds in: those `layer_types` names, else all from `first` on.

    Raises:
        InputError: a window that is no size, or layer types that are not one known word per layer.
    """
    window = f.count("sliding_window", None) if "sliding_window" in f.d else default
    if window is None:
        return {}
    kinds = f.d.get("layer_types")
    windowed = tuple(layer >= first for layer in range(layers))
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise InputError(f.where, "layer_types", kinds, f"must be {layers} entries, each {' or '.join(known)}")
        windowed = tuple(kind == "sliding_attention" for kind in kinds)
    return {"sliding_window": window, "windowed_layers": windowed}


def experts(
    f: Fields,
    sparse_layers: Sequence[bool],
    *,
    count: str = "num_experts",
    width: str = "moe_intermediate_size",
    normalized: bool = True,
) -> dict[str, Any]:
    """Number of experts, visits of a token, and the width of one.

    Args:
        f: the file.
        sparse_layers: per layer, whether it has experts.
        count: the field that holds how many there are, where it goes by no other name.
        width: the field that holds the width of one.
        normalized: the chosen ones' weights sum to one where the file is silent.

    Raises:
        InputError: a size is missing, or a token visits more experts than there are.
    """
    named = any(f.d.get(name) is not None for name in _NAMES["num_experts"])
    E, k = size(f, "num_experts") if named else f.count(count), f.count("num_experts_per_tok")
    if k > E:
        raise InputError(f.where, "num_experts_per_tok", k, f"must be at most {E} experts")
    return {
        "num_experts": E,
        "num_experts_per_tok": k,
        "moe_intermediate_size": f.count(width),
        "norm_topk_prob": f.flag("norm_topk_prob", normalized),
        "sparse_layers": tuple(sparse_layers),
    }
