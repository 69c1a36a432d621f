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
from llmlab.reference.models._shapes import Shapes, layer_shapes, shapes_after, shapes_before

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
        attention_factor: of cosines and sines in "yarn" and "longrope"; 0 where it follows from the others.
        beta_fast, beta_slow: turns over the original context between which "yarn" blends.
        mscale, mscale_all_dim: DeepSeek's two weights of yarn's attention factor; 0 where not given.
        truncate: "yarn" rounds the ends of its blend to whole pairs.
        short_factor, long_factor: "longrope" divides each pair's frequency by one of them.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


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
class Routing:
    """How a token's experts are chosen and weighted.

    Attributes:
        score: "softmax" over all experts or "sigmoid" of each.
        groups, groups_kept: experts lie in so many groups, of which a token may visit the best ones only
            (DeepSeek-V3, arXiv:2412.19437, section 2.1.2): those whose two best scores sum highest.
        scale: what the chosen experts' weights are multiplied with.
        correction: a bias per expert is added to the scores when choosing, not when weighting.
    """

    score: str = "softmax"
    groups: int = 1
    groups_kept: int = 1
    scale: float = 1.0
    correction: bool = False


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

    Families with a file of their own can be run; those of `_families.py` (`runnable` false) can be priced.

    Attributes:
        name: where it came from: a preset's name, a path, or whatever the caller said.
        model_type: as in the file.
        hidden_size: model width D.
        intermediate_size: feed-forward width F of a dense layer.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads N.
        num_key_value_heads: key/value heads K; N is a multiple of it.
        head_dim: head width H; N * H need not equal D.
        vocab_size: V.
        max_position_embeddings: longest context.
        rms_norm_eps: epsilon of every norm, LayerNorms included.
        positions: "rotary", "learned" or "alibi".
        rope: rotary base and scaling.
        rotary_width: coordinates of a head that are rotated, its first; 0 where all are.
        rotary_interleaved: pairs are neighbours (2r, 2r + 1), not halves (r, r + R).
        scaled_alibi: the linear biases are divided by the root of the head width like the scores (Falcon-RW).
        sliding_window: keys a query of a windowed layer may see, itself included; None when no layer is windowed.
        windowed_layers: per layer, whether `sliding_window` holds there; empty when no layer is windowed.
        tie_word_embeddings: the output matrix is the embedding matrix.
        attention_bias: biases on the q, k and v projections.
        attention_output_bias: bias on the output projection.
        mlp_bias: biases in dense feed-forward layers.
        qk_norm: RMSNorm over each head of q and k before the rotation (Qwen3).
        hidden_act: "silu", "gelu", "gelu_tanh" or "relu", of the gate where there is one.
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
        learned_positions: rows of a table of absolute positions, those past `max_position_embeddings` being in front of
            position 0; 0 where there is no table.
        norm_bias: norms have a bias beside their weight: they are LayerNorms, the others RMSNorms.
        norms_per_layer: 2 in most; 4 where outputs are normed too (Gemma 2 and 3, GLM-4); 1 where a parallel block shares it.
        post_norm: norms come after the residual sum (OPT-350m).
        final_norm: a norm before the output matrix.
        embedding_norm: a norm after the embedding (BLOOM).
        embedding_width: width of the embedding where it is projected to and from the model width (OPT-350m); 0 where not.
        normalized_head: rows of the output matrix are scaled to length one (Baichuan 2).
        routing: how experts are chosen; matters where there are some.
        num_nextn_predict_layers: multi-token prediction layers behind the others (DeepSeek-V3), not counted anywhere.
        shared_expert_gate: the always-on expert is scaled by a gate of its own (Qwen2-MoE).
        expert_bias: routed experts and the router have biases (gpt-oss).
        head_bias: the output matrix has a bias.
        runnable: its family has a file of its own.
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
    positions: str = "rotary"
    rope: Rope = field(default_factory=Rope)
    rotary_width: int = 0
    rotary_interleaved: bool = False
    scaled_alibi: bool = False
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
    post_norm: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_width: int = 0
    normalized_head: bool = False
    routing: Routing = field(default_factory=Routing)
    num_nextn_predict_layers: int = 0
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

    def layer_shapes(self, layer: int) -> Shapes:
        """Shapes of one layer's parameters by the Llama family's names, whatever its files say; matrices are [out, in]."""
        return layer_shapes(self, layer)

    def parameter_shapes(self) -> Shapes:
        """Shapes of all parameters by the Llama family's names; a tied output matrix is not repeated."""
        shapes = shapes_before(self)
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes(self, layer).items()}
        return shapes | shapes_after(self)

    def weight_shapes(self) -> Shapes:
        """Shapes of all tensors as transformers names and packs them, buffers included; tied output matrices are not repeated.

        Families that can only be priced go by the Llama family's names.
        """
        if not self.runnable:
            return self.parameter_shapes()
        from llmlab.reference.models._architecture import file_shapes

        return file_shapes(self)

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied output matrix counted once."""
        layers = self.num_hidden_layers * _size(self.layer_shapes(0))
        if self.sparse_layers or self.linear_layers:
            layers = sum(_size(self.layer_shapes(layer)) for layer in range(self.num_hidden_layers))
        return layers + _size(shapes_before(self)) + _size(shapes_after(self))

    @property
    def active_matrix_elements(self) -> float:
        """Elements of the matrices up to the last layer that a token is multiplied with: of routed experts, those it visits."""
        total = 0.0
        for layer in range(self.num_hidden_layers):
            for name, shape in self.layer_shapes(layer).items():
                if len(shape) > 1 and not name.endswith("_bias"):
                    visited = self.num_experts_per_tok / self.num_experts if name.startswith("mlp.experts.") else 1.0
                    total += visited * math.prod(shape)
        return total + self.embedding_width * self.hidden_size

    @property
    def head_elements(self) -> int:
        """Elements of the matrices that turn a hidden state into logits."""
        return (self.embedding_width or self.hidden_size) * self.vocab_size + self.embedding_width * self.hidden_size

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
        from llmlab.reference.models._architecture import read_config

        return read_config(Fields(d, where))

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

    def refuse(self, field: str, *, unless: bool = False) -> None:
        """Raise where a flag has the value that is not known here."""
        if self.flag(field, unless) is not unless:
            raise InputError(self.where, field, not unless, f"must be {str(unless).lower()}")

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
