"""What an architecture is: the fields of a Hugging Face `config.json`, read once, checked, and nothing else.

Models are built from a `ModelConfig`, and the simulator prices the same object, so a model that runs can be priced.
Field names are those of the file. Letters used below: V vocabulary, D model width, F feed-forward width, N query heads,
K key/value heads, H head width, E experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmlab.reference.errors import InputError

# What transformers assumes when a file leaves the field out; None means "as many as query heads".
_KEY_VALUE_HEADS = {
    "llama": None,
    "mistral": 8,
    "mixtral": 8,
    "qwen2": 32,
    "qwen3": 32,
    "qwen2_moe": 16,
    "qwen3_moe": 4,
}
MODEL_TYPES = tuple(_KEY_VALUE_HEADS)
"""The families the reference models are built for; `_families.py` reads more, to be priced only."""
_LONG = {"llama": 2048, "mistral": 131072, "mixtral": 131072}
_HEAD_DIM = {"qwen3": 128}
_LARGEST = 2**40  # a size above this is a typing error, and would overflow products in 64 bits


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base and how it is stretched to longer contexts.

    Attributes:
        theta: base of the wavelengths (10000, Llama-3 500000).
        kind: "default", "linear", "llama3", "dynamic", "yarn" or "longrope".
        factor: stretch, 1 for "default".
        low_freq_factor, high_freq_factor: edges of the blend of "llama3", in turns over the original context.
        original_max_position_embeddings: context the model was first trained with; 0 where not given.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): the cache holds one latent per token.

    Attributes:
        query_rank: width of the compressed query; 0 where queries are projected directly.
        kv_rank: width of the latent that keys and values are expanded from.
        nope_width, rope_width: parts of a head's query and key without and with rotation; the rotated key is shared by heads.
        value_width: of one head.
        index_topk: keys a query attends to after an indexer has scored all (DeepSeek-V3.2); 0 where it attends to all.
        index_heads, index_width: of that indexer.
    """

    query_rank: int
    kv_rank: int
    nope_width: int
    rope_width: int
    value_width: int
    index_topk: int = 0
    index_heads: int = 0
    index_width: int = 0

    @property
    def cached_width(self) -> int:
        """Elements one token adds to the cache of one layer, the indexer's keys not counted."""
        return self.kv_rank + self.rope_width


@dataclass(frozen=True)
class GatedDelta:
    """Linear attention by the gated delta rule (arXiv:2412.06464): a state of fixed size per request instead of a cache.

    Attributes:
        key_heads, value_heads, key_width, value_width: sizes of the state: value_heads matrices of key_width x value_width.
        kernel: taps of the causal convolution before it.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int = 4

    @property
    def state_elements(self) -> int:
        """Elements of one request's state in one layer."""
        return self.value_heads * self.key_width * self.value_width


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer: dense or mixture of experts.

    The families of `MODEL_TYPES` can be run; others (`runnable` false) are described well enough to be priced.

    Attributes:
        name: where it came from: a preset's name, a path, or whatever the caller said.
        model_type: as in the file: llama, mistral, qwen2, qwen3, mixtral, qwen2_moe, qwen3_moe, or one of `_families.py`.
        hidden_size: model width D.
        intermediate_size: feed-forward width F of a dense layer.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads N.
        num_key_value_heads: key/value heads K; N is a multiple of it.
        head_dim: head width H; N * H need not equal D.
        vocab_size: V.
        max_position_embeddings: longest context.
        rms_norm_eps: epsilon of every RMSNorm.
        rope: rotary base and scaling.
        sliding_window: keys a query of a windowed layer may see, itself included; None when no layer is windowed.
        windowed_layers: per layer, whether `sliding_window` holds there; empty when no layer is windowed.
        tie_word_embeddings: the output matrix is the embedding matrix.
        attention_bias: biases on the q, k and v projections.
        attention_output_bias: bias on the output projection.
        mlp_bias: biases in dense feed-forward layers.
        qk_norm: RMSNorm over each head of q and k before the rotation (Qwen3).
        hidden_act: activation of the gate.
        num_experts: routed experts E of a sparse layer; 0 for a dense model.
        num_experts_per_tok: experts each token visits; 0 for a dense model.
        moe_intermediate_size: feed-forward width of one routed expert; 0 for a dense model.
        shared_expert_intermediate_size: width of the always-on expert (Qwen2-MoE); 0 where there is none.
        norm_topk_prob: the chosen experts' weights are rescaled to sum to one.
        sparse_layers: per layer, whether it is a mixture of experts; empty for a dense model.
        bos_token_id: id put in front of a text, or None.
        eos_token_ids: ids that end a text.
        dtype: dtype the weights are stored in ("bfloat16", "float16", "float32").
        latent: latent attention in every layer; None where keys and values are cached.
        linear: sizes of the layers that `linear_layers` names; None where there are none.
        linear_layers: per layer, whether it is linear attention instead of softmax attention.
        query_gate: the query projection also makes an output gate as wide as the queries (Qwen3-Next).
        gated_mlp: dense layers have a gate, three matrices instead of two.
        parallel_block: attention and feed-forward read the same input and are summed once (GPT-J, Falcon).
        learned_positions: rows of a table of absolute positions; 0 where positions are rotated.
        norm_bias: norms have a bias beside their weight (LayerNorm).
        norms_per_layer: 2 in most, 4 in Gemma 2 and 3, 1 in parallel blocks.
        shared_expert_gate: the always-on expert is scaled by a gate of its own (Qwen2-MoE).
        expert_bias: routed experts and the router have biases (gpt-oss).
        head_bias: the output matrix has a bias.
        runnable: one of `MODEL_TYPES`.
    """

    name: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: Rope = field(default_factory=Rope)
    sliding_window: int | None = None
    windowed_layers: tuple[bool, ...] = ()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    hidden_act: str = "silu"
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = True
    sparse_layers: tuple[bool, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    latent: LatentAttention | None = None
    linear: GatedDelta | None = None
    linear_layers: tuple[bool, ...] = ()
    query_gate: bool = False
    gated_mlp: bool = True
    parallel_block: bool = False
    learned_positions: int = 0
    norm_bias: bool = False
    norms_per_layer: int = 2
    shared_expert_gate: bool = False
    expert_bias: bool = False
    head_bias: bool = False
    runnable: bool = True

    @property
    def group_size(self) -> int:
        """Query heads per key/value head, G."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def query_width(self) -> int:
        """N * H, the width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """K * H, the width of all keys (or all values) of a token in one layer."""
        return self.num_key_value_heads * self.head_dim

    @property
    def is_moe(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(self.sparse_layers)

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer is a mixture of experts."""
        return bool(self.sparse_layers) and self.sparse_layers[layer]

    def window_of(self, layer: int) -> int | None:
        """Keys a query of this layer may see, itself included; None when it sees everything before it."""
        return self.sliding_window if self.windowed_layers and self.windowed_layers[layer] else None

    def is_linear(self, layer: int) -> bool:
        """Whether this layer is linear attention."""
        return bool(self.linear_layers) and self.linear_layers[layer]

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one layer's weights by their Hugging Face name within the layer; matrices are [out, in].

        Families that are only priced go by the same names, whatever their files say.
        """
        D, Q, KV, H = self.hidden_size, self.query_width, self.key_value_width, self.head_dim
        if not self.runnable:
            from llmlab.reference.models._families import layer_shapes

            return layer_shapes(self, layer)
        shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (D,)}
        for name, width in (("q", Q), ("k", KV), ("v", KV)):
            shapes[f"self_attn.{name}_proj.weight"] = (width, D)
            if self.attention_bias:
                shapes[f"self_attn.{name}_proj.bias"] = (width,)
        if self.qk_norm:
            shapes |= {"self_attn.q_norm.weight": (H,), "self_attn.k_norm.weight": (H,)}
        shapes["self_attn.o_proj.weight"] = (D, Q)
        if self.attention_output_bias:
            shapes["self_attn.o_proj.bias"] = (D,)
        shapes["post_attention_layernorm.weight"] = (D,)
        if self.is_sparse(layer):
            E, M = self.num_experts, self.moe_intermediate_size
            shapes |= {"mlp.gate.weight": (E, D), "mlp.experts.gate_up_proj": (E, 2 * M, D), "mlp.experts.down_proj": (E, D, M)}
            if S := self.shared_expert_intermediate_size:
                shapes |= gated_shapes("mlp.shared_expert.", D, S, bias=False) | {"mlp.shared_expert_gate.weight": (1, D)}
        else:
            shapes |= gated_shapes("mlp.", D, self.intermediate_size, bias=self.mlp_bias)
        return shapes

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name; a tied output matrix is not repeated."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self.layer_shapes(layer).items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        if self.learned_positions:
            shapes["model.embed_positions.weight"] = (self.learned_positions, self.hidden_size)
        if self.norm_bias:
            shapes["model.norm.bias"] = (self.hidden_size,)
        if self.head_bias:
            shapes["lm_head.bias"] = (self.vocab_size,)
        return shapes

    @property
    def num_parameters(self) -> int:
        """All weights, a tied output matrix counted once."""
        layers = self.num_hidden_layers * _size(self.layer_shapes(0))
        if self.sparse_layers or self.linear_layers:
            layers = sum(_size(self.layer_shapes(layer)) for layer in range(self.num_hidden_layers))
        matrices = 1 if self.tie_word_embeddings else 2
        tables = (matrices * self.vocab_size + self.learned_positions) * self.hidden_size
        return layers + tables + self.hidden_size * (1 + self.norm_bias) + self.vocab_size * self.head_bias

    @property
    def num_active_parameters(self) -> int:
        """Weights one token is multiplied with: all, less the routed experts it does not visit."""
        unused = self.num_experts - self.num_experts_per_tok
        return self.num_parameters - sum(self.sparse_layers) * unused * 3 * self.hidden_size * self.moe_intermediate_size

    def kv_bytes_per_token(self, itemsize: float = 2.0) -> float:
        """Bytes of keys and values (or latents) one token adds over all layers, windows not deducted."""
        width = self.latent.cached_width if self.latent else 2 * self.key_value_width
        return (self.num_hidden_layers - sum(self.linear_layers)) * width * itemsize

    def renamed(self, name: str) -> ModelConfig:
        """The same architecture under another name."""
        return replace(self, name=name)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> ModelConfig:
        """Read the fields of a Hugging Face `config.json`, of transformers 4 or 5.

        Args:
            d: the parsed file.
            where: what to call it in errors and in `name`.

        Raises:
            InputError: a field is missing, of the wrong type, not finite, out of range, or contradicts another.

        >>> tiny = dict(model_type="llama", hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        ...             num_attention_heads=2, vocab_size=10)
        >>> ModelConfig.from_dict(tiny).num_parameters
        728
        """
        if not isinstance(d, Mapping):
            raise InputError(where, "", d, "must be a JSON object with the fields of a config.json")
        if "num_hidden_layers" not in d and isinstance(d.get("text_config"), Mapping):
            d = d["text_config"]  # a model that also sees pictures: its decoder
        return _read(Fields(d, where))

    @classmethod
    def from_json(cls, path: str | Path) -> ModelConfig:
        """Read a `config.json`, or the one in a folder.

        Raises:
            InputError: the file is absent, not JSON (truncated, say), or its fields are wrong.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        try:
            parsed = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(path, "", path.name, f"cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(path, "", path.name, f"is not valid JSON: {error}") from error
        return cls.from_dict(parsed, str(path))


def gated_shapes(prefix: str, D: int, F: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of gate, up and down projections; matrices are [out, in]."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows, columns in (("gate_proj", F, D), ("up_proj", F, D), ("down_proj", D, F)):
        shapes[f"{prefix}{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{prefix}{name}.bias"] = (rows,)
    return shapes


def _size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


_absent: Any = object()


@dataclass(frozen=True)
class Fields:
    """Typed reading of a parsed file; every complaint names file, field and value."""

    d: Mapping[str, Any]
    where: str

    def _get(self, field: str, default: Any) -> Any:
        value = self.d.get(field)
        if value is not None:
            return value
        if default is _absent:
            raise InputError(self.where, field, None, "is missing")
        return _absent

    def count(self, field: str, default: Any = _absent, *, least: int = 1) -> Any:
        """A whole number of at least `least`; null is the same as absent."""
        value = self._get(field, default)
        if value is _absent:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(self.where, field, value, "must be a whole number")
        if not least <= value <= _LARGEST:
            raise InputError(
                self.where, field, value, f"must be at least {least}" if value < least else "is too large to be a size"
            )
        return value

    def positive(self, field: str, default: Any = _absent) -> Any:
        """A finite number above zero."""
        value = self._get(field, default)
        if value is _absent:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(self.where, field, value, "must be a number")
        if not (0 < value < math.inf):
            raise InputError(self.where, field, value, "must be finite and above 0")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self._get(field, default)
        if value is _absent:
            return default
        if not isinstance(value, bool):
            raise InputError(self.where, field, value, "must be true or false")
        return value

    def text(self, field: str, default: Any = _absent) -> Any:
        value = self._get(field, default)
        if value is _absent:
            return default
        if not isinstance(value, str):
            raise InputError(self.where, field, value, "must be a string")
        return value

    def choice(self, field: str, known: Sequence[str], default: Any = _absent) -> str:
        """One of the known names."""
        value = self.text(field, default)
        if value not in known:
            raise InputError(self.where, field, value, f"is none of {', '.join(known)}")
        return str(value)

    def section(self, field: str) -> Mapping[str, Any]:
        """An object within the file."""
        value = self._get(field, _absent)
        if not isinstance(value, Mapping):
            raise InputError(self.where, field, value, "must be an object")
        return value

    def divides(self, field: str, whole: int, part: int, of: str = "attention heads") -> None:
        """Refuse a size that cannot be cut into equal parts."""
        if whole % part:
            raise InputError(self.where, field, whole, f"must be a multiple of {part} {of}")

    def ids(self, field: str, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list of them; null is none."""
        value = self.d.get(field)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        for one in listed:
            if isinstance(one, bool) or not isinstance(one, int) or not -1 <= one < vocab_size:
                raise InputError(self.where, field, value, f"must be token ids below vocab_size={vocab_size}")
        return tuple(one for one in listed if one >= 0)


def _read(f: Fields) -> ModelConfig:
    model_type = f.text("model_type")
    if model_type not in MODEL_TYPES:
        from llmlab.reference.models._families import PRICED_TYPES, read_priced

        if model_type in PRICED_TYPES:
            return read_priced(f, model_type)
        raise InputError(f.where, "model_type", model_type, f"is none of {', '.join((*MODEL_TYPES, *PRICED_TYPES))}")
    layers, D, N = f.count("num_hidden_layers"), f.count("hidden_size"), f.count("num_attention_heads")
    if layers > 10_000:
        raise InputError(f.where, "num_hidden_layers", layers, "is too large to be a number of layers")
    F, V = f.count("intermediate_size"), f.count("vocab_size")

    K = _KEY_VALUE_HEADS[model_type] or N
    if "num_key_value_heads" in f.d:
        K = f.count("num_key_value_heads", N)
    if N % K:
        raise InputError(f.where, "num_key_value_heads", K, f"must divide num_attention_heads={N}")
    H = f.count("head_dim", _HEAD_DIM.get(model_type, 0))
    if not H:
        if D % N:
            raise InputError(f.where, "num_attention_heads", N, f"must divide hidden_size={D} when head_dim is not given")
        H = D // N
    if H % 2:
        raise InputError(f.where, "head_dim", H, "must be even: positions rotate pairs of coordinates")
    act = f.text("hidden_act", "silu")
    if act != "silu":
        raise InputError(f.where, "hidden_act", act, "must be silu")

    longest = f.count("max_position_embeddings", _LONG.get(model_type, 32768))
    qwen = model_type.startswith("qwen")
    window, windowed = _windows(f, model_type, layers)
    bos = f.ids("bos_token_id", V)
    return ModelConfig(
        name=f.where,
        model_type=model_type,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=layers,
        num_attention_heads=N,
        num_key_value_heads=K,
        head_dim=H,
        vocab_size=V,
        max_position_embeddings=longest,
        rms_norm_eps=f.positive("rms_norm_eps", 1e-5 if model_type == "mixtral" else 1e-6),
        rope=_rope(f, 1e6 if model_type == "mixtral" else 10000.0, longest),
        sliding_window=window,
        windowed_layers=windowed,
        tie_word_embeddings=f.flag("tie_word_embeddings", False),
        attention_bias=f.flag("qkv_bias", True) if model_type.startswith("qwen2") else f.flag("attention_bias", False),
        attention_output_bias=model_type in ("llama", "qwen3", "qwen3_moe") and f.flag("attention_bias", False),
        mlp_bias=model_type == "llama" and f.flag("mlp_bias", False),
        qk_norm=model_type.startswith("qwen3"),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=f.ids("eos_token_id", V),
        dtype=f.text("dtype", f.text("torch_dtype", "bfloat16")),
        **(_experts(f, model_type, layers, qwen) if model_type == "mixtral" or model_type.endswith("_moe") else {}),
    )


def _experts(f: Fields, model_type: str, layers: int, qwen: bool) -> dict[str, Any]:
    field = "num_experts" if f.d.get("num_experts") is not None else "num_local_experts"
    E = f.count(field)
    k = f.count("num_experts_per_tok")
    if k > E:
        raise InputError(f.where, "num_experts_per_tok", k, f"must be at most {field}={E}")
    width, step = f.count("intermediate_size"), 1
    dense: list[int] = []
    if qwen:
        width, step = f.count("moe_intermediate_size"), f.count("decoder_sparse_step", 1)
        dense = f.d.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(isinstance(layer, int) and 0 <= layer < layers for layer in dense):
            raise InputError(f.where, "mlp_only_layers", dense, f"must be layer numbers below num_hidden_layers={layers}")
    return {
        "num_experts": E,
        "num_experts_per_tok": k,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": f.count("shared_expert_intermediate_size", 0) if model_type == "qwen2_moe" else 0,
        "norm_topk_prob": f.flag("norm_topk_prob", False) if qwen else True,
        "sparse_layers": tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers)),
    }


def _windows(f: Fields, model_type: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The window and the layers it holds in: all in Mistral and Mixtral, those past `max_window_layers` in Qwen."""
    if model_type == "llama" or (model_type.startswith("qwen") and not f.flag("use_sliding_window", False)):
        return None, ()
    if "sliding_window" in f.d or model_type != "mistral":
        window = f.count("sliding_window", None)
    else:
        window = 4096  # what transformers assumes for Mistral
    if window is None:
        return None, ()
    kinds = f.d.get("layer_types")
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise InputError(f.where, "layer_types", kinds, f"must be {layers} entries, each {' or '.join(known)}")
        return window, tuple(kind == "sliding_attention" for kind in kinds)
    first = f.count("max_window_layers", 28, least=0) if model_type in ("qwen2", "qwen3", "qwen2_moe") else 0
    return window, tuple(layer >= first for layer in range(layers))


_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def _rope(f: Fields, theta: float, longest: int) -> Rope:
    """Transformers 4 keeps `rope_theta` outside `rope_scaling`; transformers 5 keeps all in `rope_parameters`."""
    name = "rope_parameters" if f.d.get("rope_parameters") is not None else "rope_scaling"
    given = f.d.get(name)
    theta = f.positive("rope_theta", theta)
    if given is None:
        return Rope(theta)
    if not isinstance(given, Mapping):
        raise InputError(f.where, name, given, "must be a JSON object or null")
    r = Fields(given, f"{f.where}: {name}")
    kind = r.text("rope_type", r.text("type", "default"))
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in _ROPE_KINDS:
        raise InputError(r.where, "rope_type", kind, f"is none of {', '.join(_ROPE_KINDS)}")
    if r.positive("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(r.where, "partial_rotary_factor", given["partial_rotary_factor"], "must be 1 in this family")
    theta = r.positive("rope_theta", theta)
    if kind == "default":
        return Rope(theta)
    original = r.count("original_max_position_embeddings", f.count("original_max_position_embeddings", 0))
    if kind != "llama3":
        return Rope(theta, kind, r.positive("factor", 1.0 if kind == "longrope" else _absent), 1.0, 4.0, original or longest)
    low, high = r.positive("low_freq_factor"), r.positive("high_freq_factor")
    if not low < high:
        raise InputError(r.where, "low_freq_factor", low, f"must be below high_freq_factor={high}")
    if not original:
        raise InputError(r.where, "original_max_position_embeddings", None, "is missing")
    return Rope(theta, kind, r.positive("factor"), low, high, original)
