"""A model as the list of operators one device runs, and as the bytes it holds.

Built from the same `ModelConfig` the reference models are built from. Engines fuse what can be fused, and so does this list:
q, k, v in one matrix product, gate and up in another, the residual addition with the norm after it. Tensor parallelism
(Megatron-LM, arXiv:1909.08053) splits heads and feed-forward columns, then sums twice per layer.

Letters: D model width, F feed-forward width, N query heads, K key/value heads, H head width, V vocabulary, E experts.
Units: tokens, elements, bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._presets import preset, preset_names
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.hardware.device import DTYPE_BYTES, Device, dtype_name

Rows = Literal["tokens", "emitted"]


@dataclass(frozen=True)
class Gemm:
    """out[m, n] = x[m, k] w[k, n], `count` times per step; m follows `rows`."""

    name: str
    n: int
    k: int
    count: int
    rows: Rows = "tokens"


@dataclass(frozen=True)
class Experts:
    """Routed feed-forward: every token visits `visits` of `experts`, each of width `inter` on this device."""

    hidden: int
    inter: int
    visits: int
    experts: int
    count: int


@dataclass(frozen=True)
class Moved:
    """An operator whose time is its memory traffic: elements moved per row, and `float32` ones where the logits are."""

    name: str
    elements_per_row: float
    count: int
    rows: Rows = "tokens"
    itemsize: float = 2.0


@dataclass(frozen=True)
class Attention:
    """Attention of `count` layers with these heads on this device; window 0 sees everything."""

    heads: int
    kv_heads: int
    head_width: int
    window: int
    count: int


@dataclass(frozen=True)
class Collective:
    """A sum (or gather) over the tensor-parallel group: bytes per row."""

    kind: str
    bytes_per_row: float
    count: int
    rows: Rows = "tokens"


Operator = Gemm | Experts | Moved | Attention | Collective


@dataclass(frozen=True)
class ModelDescription:
    """What the simulator asks of a model. `config` is the architecture itself."""

    config: ModelConfig

    @property
    def name(self) -> str:
        """Preset name or path."""
        return self.config.name

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.config.num_hidden_layers

    @property
    def max_context_tokens(self) -> int:
        """Longest context the model was made for."""
        return self.config.max_position_embeddings

    @property
    def parameters(self) -> int:
        """All weights, a tied output matrix counted once."""
        return self.config.num_parameters

    @cached_property
    def attention_windows(self) -> tuple[tuple[int, int], ...]:
        """(window, layers having it), window 0 being none."""
        counts = Counter(self.config.window_of(layer) or 0 for layer in range(self.layers))
        return tuple(sorted(counts.items()))

    def check_tensor_parallel(self, tensor_parallel: int) -> None:
        """Refuse a degree that does not divide the query heads, or that the key/value heads cannot follow.

        Raises:
            InputError: the degree is not possible for this model.
        """
        c = self.config
        if tensor_parallel < 1:
            raise InputError(self.name, "tensor_parallel", tensor_parallel, "must be at least 1")
        if c.num_attention_heads % tensor_parallel:
            raise InputError(self.name, "tensor_parallel", tensor_parallel, f"must divide {c.num_attention_heads} query heads")
        kv = c.num_key_value_heads
        if kv % tensor_parallel and tensor_parallel % kv:
            raise InputError(self.name, "tensor_parallel", tensor_parallel, f"must divide {kv} key/value heads, or they it")

    def kv_heads_per_device(self, tensor_parallel: int = 1) -> int:
        """Key/value heads one device holds; with more devices than heads each is held several times over."""
        return max(1, self.config.num_key_value_heads // tensor_parallel)

    def operators(self, tensor_parallel: int = 1, *, weight_dtype: str = "bfloat16") -> list[Operator]:
        """Operators one device runs in one step, rows left open.

        Raises:
            InputError: the tensor-parallel degree is not possible for this model.
        """
        self.check_tensor_parallel(tensor_parallel)
        c, tp = self.config, tensor_parallel
        D, H, V, L = c.hidden_size, c.head_dim, c.vocab_size, c.num_hidden_layers
        heads, kv_heads = c.num_attention_heads // tp, self.kv_heads_per_device(tp)
        activation = 4.0 if weight_dtype == "float32" else 2.0
        sparse = sum(c.sparse_layers)
        dense = L - sparse
        found: list[Operator] = [
            Gemm("qkv", (heads + 2 * kv_heads) * H, D, L),
            Gemm("o", D, heads * H, L),
            *(Attention(heads, kv_heads, H, window, count) for window, count in self.attention_windows),
            Moved("norm", 4.0 * D, 2 * L + 1, itemsize=activation),
            Moved("rope", 2.0 * (heads + kv_heads) * H + 2.0 * kv_heads * H, L, itemsize=activation),
        ]
        if c.qk_norm:
            found.append(Moved("qk_norm", 2.0 * (heads + kv_heads) * H, L, itemsize=activation))
        if dense:
            F = math.ceil(c.intermediate_size / tp)
            found += [
                Gemm("gate_up", 2 * F, D, dense),
                Gemm("down", D, F, dense),
                Moved("activation", 3.0 * F, dense, itemsize=activation),
            ]
        if sparse:
            inter = math.ceil(c.moe_intermediate_size / tp)
            found += [
                Gemm("router", c.num_experts, D, sparse),
                Experts(D, inter, c.num_experts_per_tok, c.num_experts, sparse),
            ]
            if c.shared_expert_intermediate_size:
                F = math.ceil(c.shared_expert_intermediate_size / tp)
                found += [
                    Gemm("shared_gate_up", 2 * F, D, sparse),
                    Gemm("shared_down", D, F, sparse),
                    Moved("shared_activation", 3.0 * F, sparse, itemsize=activation),
                ]
        found += [
            Moved("embedding", 2.0 * D, 1, itemsize=activation),
            Gemm("lm_head", math.ceil(V / tp), D, 1, "emitted"),
            Moved("sampling", 3.0 * V, 1, "emitted", 4.0),
        ]
        if tp > 1:
            found += [
                Collective("all_reduce", activation * D, 2 * L + 1),
                Collective("all_gather", activation * V, 1, "emitted"),
            ]
        return found

    def weight_bytes(self, tensor_parallel: int = 1, weight_dtype: str = "bfloat16") -> float:
        """Bytes of weights on one device. Quantized dtypes (one byte or less) leave embedding and output matrix at 16 bit.

        Raises:
            InputError: the tensor-parallel degree or dtype is not possible.
        """
        self.check_tensor_parallel(tensor_parallel)
        itemsize = DTYPE_BYTES[dtype_name(weight_dtype)]
        c, tp = self.config, tensor_parallel
        vocabulary = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
        kv = 2 * c.num_hidden_layers * c.key_value_width * c.hidden_size
        copies = self.kv_heads_per_device(tp) * tp / c.num_key_value_heads  # keys and values are repeated past K devices
        norms = c.hidden_size * (2 * c.num_hidden_layers + 1)
        router = sum(c.sparse_layers) * c.num_experts * c.hidden_size
        split = self.parameters - vocabulary - kv - norms - router
        wide = max(itemsize, 2.0) if itemsize < 2 else itemsize
        scales = 1.0 + (0.03125 if itemsize < 1 else 0.0)  # one 16-bit scale per 128 four-bit weights
        return itemsize * scales * (split + kv * copies) / tp + wide * (vocabulary / tp + norms + router)

    def kv_bytes_per_token(self, tensor_parallel: int = 1, kv_dtype: str = "bfloat16") -> float:
        """Bytes one token adds to the cache of one device, windows not deducted."""
        heads = self.kv_heads_per_device(tensor_parallel)
        return 2.0 * self.layers * heads * self.config.head_dim * DTYPE_BYTES[dtype_name(kv_dtype)]

    def activation_bytes(self, tokens: int, tensor_parallel: int = 1, *, rows: int | None = None) -> float:
        """Working memory of a step of `tokens` tokens, `rows` of which get logits (all, at most 1024, if not said).

        Hidden state, residual and normed copy, the widest intermediate, and logits twice in float32.
        """
        c, tp = self.config, tensor_parallel
        widest = 3 * c.intermediate_size / tp
        if c.is_moe:
            widest = max(widest, 3 * c.moe_intermediate_size * c.num_experts_per_tok / tp)
        attention = (c.query_width + 2 * c.key_value_width) / tp + c.query_width / tp
        logits = min(tokens, 1024) if rows is None else rows
        return tokens * 2.0 * (3 * c.hidden_size + max(widest, attention)) + logits * c.vocab_size * 8.0

    def flops(self, shape: BatchShape) -> float:
        """Useful FLOPs of a step on all devices together, 2 per multiply-add."""
        c = self.config
        matrices = c.num_active_parameters - c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
        linear = 2.0 * matrices * shape.new_tokens + 2.0 * c.vocab_size * c.hidden_size * shape.emitted
        pairs = sum(new * (cached + 0.5 * (new + 1)) for new, cached in shape.prefill) + shape.decode_context_tokens
        return linear + 4.0 * self.layers * c.query_width * pairs


def load_model(name_or_path: str | Path) -> ModelDescription:
    """A preset by name, or the path of a `config.json` or of its folder.

    Raises:
        InputError: neither a preset nor a file, or the file is truncated, lacks a field or holds a wrong one.

    >>> load_model("meta-llama/Meta-Llama-3-8B").kv_bytes_per_token()
    131072.0
    """
    text = str(name_or_path)
    if (known := preset(text)) is not None:
        return ModelDescription(known)
    path = Path(text)
    if path.exists():
        return ModelDescription(ModelConfig.from_json(path))
    shown = ", ".join(preset_names()[:6])
    raise InputError(
        "model", "name", text, f"neither a known model ({shown}, ... {len(preset_names())} in all) nor a config.json"
    )


def kv_capacity_tokens(
    model: ModelDescription,
    device: Device,
    tensor_parallel: int = 1,
    *,
    gpu_memory_utilization: float = 0.9,
    weight_dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    max_num_batched_tokens: int = 8192,
    overhead_bytes: float | None = None,
) -> int:
    """Tokens whose keys and values fit beside weights, working memory and the engine's own share.

    Args:
        model: what is served.
        device: one of `tensor_parallel` equal devices.
        tensor_parallel: devices one replica spans.
        gpu_memory_utilization: part of the device's memory the engine may fill.
        weight_dtype: of the matrices.
        kv_dtype: of the cache.
        max_num_batched_tokens: largest step, which sizes the working memory.
        overhead_bytes: context, communicator buffers and captured graphs; by default 1.5 GB, or 2.2 GB where devices talk,
            and a tenth of the memory at most.

    Raises:
        InputError: the fraction is not within (0, 1], or something does not fit: the message says what and by how much.
    """
    where = f"{model.name} on {tensor_parallel} x {device.name}"
    if not 0 < gpu_memory_utilization <= 1:
        raise InputError(where, "gpu_memory_utilization", gpu_memory_utilization, "must lie in (0, 1]")
    budget = device.hbm_bytes * gpu_memory_utilization
    if overhead_bytes is None:
        overhead_bytes = min(1.5e9 if tensor_parallel == 1 else 2.2e9, 0.1 * device.hbm_bytes)
    left = budget
    for what, size in (
        ("weights", model.weight_bytes(tensor_parallel, weight_dtype)),
        ("engine overhead", overhead_bytes),
        ("activations", model.activation_bytes(max_num_batched_tokens, tensor_parallel)),
        ("one token of KV cache", model.kv_bytes_per_token(tensor_parallel, kv_dtype)),
    ):
        if size > left:
            need = f"{size / 1e9:.1f} GB of {what} per device, {max(left, 0) / 1e9:.1f} GB left of {budget / 1e9:.1f} GB"
            raise InputError(where, "memory", f"{device.hbm_bytes / 1e9:.1f} GB", f"does not fit: {need}")
        if what != "one token of KV cache":
            left -= size
    return int(left // model.kv_bytes_per_token(tensor_parallel, kv_dtype))
