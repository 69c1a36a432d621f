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
from llmlab.reference.models._shapes import shapes_after, shapes_before
from llmlab.simulator.cost.batch import BatchShape
from llmlab.simulator.hardware.device import DTYPE_BYTES, Device, dtype_name

Rows = Literal["tokens", "emitted"]
Part = Literal["attention", "mlp", "experts", "router", "head"]
"""Which matrices: a quantized model leaves some of them wide."""

LINEAR_SCAN_PASSES = 14.0
LINEAR_STATE_PASSES = 2.8
"""Times the chunked scan of linear attention moves its queries, keys, values and outputs (five kernels), and its update the
float32 state. From published timings of both on an H20 (InferSim), which reach about as many of that memory's passes."""

ALL_TO_ALL_RANKS = 8
"""Up to so many devices of expert parallelism gather all tokens and scatter the sums; more exchange what each expert needs."""


@dataclass(frozen=True)
class Gemm:
    """out[m, n] = x[m, k] w[k, n], `count` times per step; m follows `rows`, times `share` of them on this device."""

    name: str
    n: int
    k: int
    count: int
    rows: Rows = "tokens"
    part: Part = "mlp"
    share: float = 1.0


@dataclass(frozen=True)
class Experts:
    """Routed feed-forward: every token visits `visits` of this device's `experts`, each of width `inter` on this device.

    Where experts are dealt to `ranks` devices, `visits` is the mean part of a token's visits that falls on one of them
    and `handled` those it sorts: all, unless tokens travel to their experts.
    """

    hidden: int
    inter: int
    visits: float
    experts: int
    count: int
    ranks: int = 1
    handled: float = 0.0


@dataclass(frozen=True)
class Moved:
    """An operator whose time is its memory traffic: elements moved per row, and `float32` ones where the logits are."""

    name: str
    elements_per_row: float
    count: int
    rows: Rows = "tokens"
    itemsize: float = 2.0
    share: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Attention of `count` layers with these heads on this device; window 0 sees everything.

    `kind` is "" for keys and values per head; "mla" for latent attention, whose decode reads one latent for all heads and
    whose prefill expands it (`head_width` is then the mean width of keys and values); "indexer" for the scoring of all keys
    before a sparse one. `share` is the part of the requests this device attends for.
    """

    heads: int
    kv_heads: int
    head_width: int
    window: int
    count: int
    kind: str = ""
    share: float = 1.0
    latent_width: int = 0


@dataclass(frozen=True)
class Collective:
    """A sum, gather, scatter or exchange among `ranks` devices (all of the group where 0): bytes per row."""

    kind: str
    bytes_per_row: float
    count: int
    rows: Rows = "tokens"
    ranks: int = 0


Operator = Gemm | Experts | Moved | Attention | Collective


@dataclass(frozen=True)
class ModelDescription:
    """What the simulator asks of a model. `config` is the architecture itself."""

    config: ModelConfig

    @cached_property
    def _hash(self) -> int:
        return hash(self.config)

    def __hash__(self) -> int:
        """That of the architecture, computed once: descriptions are keys of many caches."""
        return self._hash

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
        """(window, layers having it), window 0 being none; layers of linear attention are not among them."""
        c = self.config
        counts = Counter(c.window_of(layer) or 0 for layer in range(self.layers) if not c.is_linear(layer))
        return tuple(sorted(counts.items()))

    def part_dtype(self, part: Part, weight_dtype: str) -> str:
        """The dtype of a part of the matrices in a model quantized to `weight_dtype`.

        Output matrix and router stay at 16 bits. Four-bit checkpoints of latent attention (NVIDIA's NVFP4 of DeepSeek) and
        gpt-oss (arXiv:2508.10925, section 2.1: MXFP4 experts) quantize the experts only; gpt-oss exists with no others.

        >>> load_model("openai/gpt-oss-20b").part_dtype("attention", "fp4")
        'bfloat16'
        """
        wide = "bfloat16" if DTYPE_BYTES[weight_dtype] < 2 else weight_dtype
        if part in ("head", "router"):
            return wide
        if self.config.model_type == "gpt_oss" and DTYPE_BYTES[weight_dtype] < 2:
            return "fp4" if part == "experts" else "bfloat16"
        if part == "attention" and self.config.latent and DTYPE_BYTES[weight_dtype] < 1:
            return "bfloat16"
        return weight_dtype

    def check_tensor_parallel(self, tensor_parallel: int, expert_parallel: int = 1, attention_data_parallel: int = 1) -> None:
        """Refuse a degree that does not divide the query heads, or that the key/value heads cannot follow.

        Raises:
            InputError: the degree is not possible for this model.
        """
        c = self.config
        if tensor_parallel < 1:
            raise InputError(self.name, "tensor_parallel", tensor_parallel, "must be at least 1")
        for field, degree in (("expert_parallel", expert_parallel), ("attention_data_parallel", attention_data_parallel)):
            if degree < 1 or tensor_parallel % degree:
                raise InputError(self.name, field, degree, f"must divide the {tensor_parallel} devices of a replica")
        if expert_parallel > 1 and not c.is_moe:
            raise InputError(self.name, "expert_parallel", expert_parallel, "this model has no experts")
        if expert_parallel > max(c.num_experts, 1):
            raise InputError(self.name, "expert_parallel", expert_parallel, f"must not pass {c.num_experts} experts")
        heads_over = tensor_parallel // attention_data_parallel
        if c.num_attention_heads % heads_over:
            raise InputError(self.name, "tensor_parallel", tensor_parallel, f"must divide {c.num_attention_heads} query heads")
        kv = c.num_key_value_heads
        if not c.latent and kv % heads_over and heads_over % kv:
            raise InputError(self.name, "tensor_parallel", tensor_parallel, f"must divide {kv} key/value heads, or they it")

    def kv_heads_per_device(self, tensor_parallel: int = 1) -> int:
        """Key/value heads one device holds; with more devices than heads each is held several times over."""
        return max(1, self.config.num_key_value_heads // tensor_parallel)

    def operators(
        self,
        tensor_parallel: int = 1,
        *,
        weight_dtype: str = "bfloat16",
        expert_parallel: int = 1,
        attention_data_parallel: int = 1,
        pipeline_parallel: int = 1,
    ) -> list[Operator]:
        """Operators one device runs in one step of all layers, rows left open.

        Args:
            tensor_parallel: devices of one replica (of one pipeline stage).
            weight_dtype: of the matrices; says how wide activations are.
            expert_parallel: groups the experts are dealt to; within a group their columns are split.
            attention_data_parallel: groups of devices that each attend for a part of the requests with all heads' weights,
                so that a latent cache is not held by every device (DeepSeek-V3, arXiv:2412.19437, section 3.4).
            pipeline_parallel: stages; the list holds the operators of all of them, and the hand-over of hidden states.

        Raises:
            InputError: a degree is not possible for this model.
        """
        self.check_tensor_parallel(tensor_parallel, expert_parallel, attention_data_parallel)
        c, tp, groups = self.config, tensor_parallel, attention_data_parallel
        D, V, L = c.hidden_size, c.vocab_size, c.num_hidden_layers
        activation = 4.0 if weight_dtype == "float32" else 2.0
        share = 1.0 / groups
        found: list[Operator] = [
            *self._attention_operators(tp // groups, share, activation),
            Moved("norm", 4.0 * D, c.norms_per_layer * L + 1, itemsize=activation, share=share),
            *self._feed_forward_operators(tp, expert_parallel, activation),
            Moved("embedding", 2.0 * D, 1, itemsize=activation, share=share),
            Gemm("lm_head", math.ceil(V / tp), c.embedding_width or D, 1, "emitted", "head"),
            Moved("sampling", 3.0 * V, 1, "emitted", 4.0),
        ]
        if c.embedding_width:
            found += [Gemm("project_in", D, c.embedding_width, 1), Gemm("project_out", c.embedding_width, D, 1, "emitted")]
        if tp > 1:
            found += self._collectives(tp, groups, expert_parallel, activation)
        if pipeline_parallel > 1:
            found.append(Collective("send_recv", activation * D, pipeline_parallel - 1, ranks=2))
        return found

    def _attention_operators(self, tp: int, share: float, activation: float) -> list[Operator]:
        c = self.config
        D, H = c.hidden_size, c.head_dim
        linear = sum(c.linear_layers)
        full = c.num_hidden_layers - linear
        heads, kv_heads = c.num_attention_heads // tp, self.kv_heads_per_device(tp)
        found: list[Operator] = []
        if m := c.latent:
            wide, narrow = m.nope_width + m.rope_width, m.value_width
            found += [
                Gemm("qkv_a", m.query_rank + m.cached_width, D, full, part="attention", share=share),
                Gemm("q_b", heads * wide, m.query_rank or D, full, part="attention", share=share),
                # In decode the same matrix is multiplied into queries and outputs instead: the same work.
                Gemm("kv_b", heads * (m.nope_width + narrow), m.kv_rank, full, part="attention", share=share),
                Gemm("o", D, heads * narrow, full, part="attention", share=share),
                Moved("qk_norm", 2.0 * (m.query_rank + m.kv_rank), full, itemsize=activation, share=share),
                Moved("rope", 2.0 * (heads * wide + m.cached_width), full, itemsize=activation, share=share),
                Attention(heads, heads, (wide + narrow) // 2, m.index_topk, full, "mla", share, m.cached_width),
            ]
            if m.index_topk:
                found += [
                    Gemm("index", m.index_heads * m.index_width, m.query_rank, full, part="attention", share=share),
                    Gemm("index_key", m.index_width + m.index_heads, D, full, part="router", share=share),
                    Attention(m.index_heads, 1, m.index_width // 2, 0, full, "indexer", share),
                ]
        elif full:
            queries = heads * (2 if c.query_gate else 1)
            found += [
                Gemm("qkv", (queries + 2 * kv_heads) * H, D, full, part="attention", share=share),
                Gemm("o", D, heads * H, full, part="attention", share=share),
                *(Attention(heads, kv_heads, H, window, count, "", share) for window, count in self.attention_windows),
            ]
            rotated = 2.0 * (heads + kv_heads) * H + 2.0 * kv_heads * H
            found.append(Moved("rope", rotated, full, itemsize=activation, share=share))
            if c.qk_norm:
                found.append(Moved("qk_norm", 2.0 * (heads + kv_heads) * H, full, itemsize=activation, share=share))
            if c.query_gate:
                found.append(Moved("gate", 3.0 * heads * H, full, itemsize=activation, share=share))
        if linear and (g := c.linear):
            keys, values = g.key_heads * g.key_width / tp, g.value_heads * g.value_width / tp
            found += [
                Gemm("linear_in", math.ceil(2 * keys + 2 * values), D, linear, part="attention", share=share),
                Gemm("linear_ba", math.ceil(2 * g.value_heads / tp), D, linear, part="router", share=share),
                Gemm("linear_out", D, math.ceil(values), linear, part="attention", share=share),
                Moved("linear_conv", 2.0 * (2 * keys + values), linear, itemsize=activation, share=share),
                Moved("linear_scan", LINEAR_SCAN_PASSES * (2 * keys + 2 * values), linear, itemsize=activation, share=share),
                Moved("linear_norm", 3.0 * values, linear, itemsize=activation, share=share),
                # The state is read and written once per request; requests that emit are all but those amid a prompt.
                Moved("linear_state", LINEAR_STATE_PASSES * g.state_elements / tp, linear, "emitted", 4.0, share),
            ]
        return found

    def _feed_forward_operators(self, tp: int, expert_parallel: int, activation: float) -> list[Operator]:
        c = self.config
        D = c.hidden_size
        sparse = sum(c.sparse_layers)
        dense = c.num_hidden_layers - sparse
        found: list[Operator] = []
        if dense:
            F = math.ceil(c.intermediate_size / tp)
            found += [
                Gemm("gate_up", 2 * F, D, dense) if c.gated_mlp else Gemm("up", F, D, dense),
                Gemm("down", D, F, dense),
                Moved("activation", (3.0 if c.gated_mlp else 2.0) * F, dense, itemsize=activation),
            ]
        if sparse:
            inter = math.ceil(c.moe_intermediate_size / (tp // expert_parallel))
            experts = math.ceil(c.num_experts / expert_parallel)
            handled = c.num_experts_per_tok / (expert_parallel if expert_parallel > ALL_TO_ALL_RANKS else 1)
            found += [
                Gemm("router", c.num_experts, D, sparse, part="router"),
                Experts(D, inter, c.num_experts_per_tok / expert_parallel, experts, sparse, expert_parallel, handled),
            ]
            if c.shared_expert_intermediate_size:
                F = math.ceil(c.shared_expert_intermediate_size / tp)
                found += [
                    Gemm("shared_gate_up", 2 * F, D, sparse),
                    Gemm("shared_down", D, F, sparse),
                    Moved("shared_activation", 3.0 * F, sparse, itemsize=activation),
                ]
        return found

    def _collectives(self, tp: int, groups: int, expert_parallel: int, activation: float) -> list[Operator]:
        """Sums over the devices of a group; where requests are attended for apart, tokens are gathered before the experts.

        Megatron-LM sums after attention and after the feed-forward, and once after the embedding; parallel blocks sum both
        at once. With expert parallelism over many devices each token travels to its experts and back (8-bit there, 16-bit
        back, arXiv:2412.19437, section 3.2.2) instead of everywhere.
        """
        c, L, D = self.config, self.config.num_hidden_layers, self.config.hidden_size
        found: list[Operator] = [Collective("all_gather", activation * c.vocab_size, 1, "emitted")]
        if groups == 1:
            return [Collective("all_reduce", activation * D, (1 if c.parallel_block else 2) * L + 1), *found]
        if tp // groups > 1:
            found.append(Collective("all_reduce", activation * D / groups, L + 1, ranks=tp // groups))
        sparse = sum(c.sparse_layers)
        if expert_parallel > ALL_TO_ALL_RANKS:
            visited = expert_parallel * (1.0 - (1.0 - 1.0 / expert_parallel) ** c.num_experts_per_tok)
            found.append(Collective("all_to_all", 1.0 * D * visited / groups, sparse))
            found.append(Collective("all_to_all", activation * D * visited / groups, sparse))
        gathered = L - sparse if expert_parallel > ALL_TO_ALL_RANKS else L
        if gathered:
            found.append(Collective("all_gather", activation * D, gathered))
            found.append(Collective("reduce_scatter", activation * D, gathered))
        return found

    def weight_bytes(
        self,
        tensor_parallel: int = 1,
        weight_dtype: str = "bfloat16",
        *,
        expert_parallel: int = 1,
        attention_data_parallel: int = 1,
    ) -> float:
        """Bytes of weights on one device. Quantized dtypes (one byte or less) leave embedding and output matrix at 16 bit.

        Raises:
            InputError: the tensor-parallel degree or dtype is not possible.
        """
        self.check_tensor_parallel(tensor_parallel, expert_parallel, attention_data_parallel)
        dtype = dtype_name(weight_dtype)
        c, tp, heads_over = self.config, tensor_parallel, tensor_parallel // attention_data_parallel

        def size(part: Part) -> float:
            itemsize = DTYPE_BYTES[self.part_dtype(part, dtype)]
            return itemsize * (1.0 + (0.03125 if itemsize < 1 else 0.0))  # one 16-bit scale per 128 four-bit weights

        copies = self.kv_heads_per_device(heads_over) * heads_over / c.num_key_value_heads  # repeated past K devices
        total = 0.0
        for name, shape in (shapes_before(c) | shapes_after(c)).items():
            split = tp if name in ("model.embed_tokens.weight", "lm_head.weight") else 1
            total += size("head") * math.prod(shape) / split
        counts = Counter((c.is_sparse(layer), c.is_linear(layer)) for layer in range(self.layers))
        first = {(c.is_sparse(layer), c.is_linear(layer)): layer for layer in reversed(range(self.layers))}
        for kind, count in counts.items():
            for name, shape in c.layer_shapes(first[kind]).items():
                elements = count * math.prod(shape)
                if len(shape) == 1:
                    total += size("head") * elements  # norms, biases
                elif name.startswith("mlp.gate.") or name.endswith("shared_expert_gate.weight"):
                    total += size("router") * elements
                elif name.startswith("mlp.experts."):
                    total += size("experts") * elements / tp
                elif name.startswith("mlp."):
                    total += size("mlp") * elements / tp
                elif any(whole in name for whole in ("q_a_proj", "kv_a_proj", "indexer")):
                    total += size("attention") * elements  # every device needs the latents
                elif name.startswith(("self_attn.k_proj", "self_attn.v_proj")):
                    total += size("attention") * elements * copies / heads_over
                else:
                    total += size("attention") * elements / heads_over
        return total

    def kv_bytes_per_token(
        self, tensor_parallel: int = 1, kv_dtype: str = "bfloat16", *, context_tokens: float | None = None
    ) -> float:
        """Bytes one token adds to the cache of one device; latents are held whole by every device.

        Args:
            tensor_parallel: devices the heads are split over.
            kv_dtype: of the cache.
            context_tokens: length of a typical request, of which windowed layers keep the window alone; all of it where None.
        """
        c, itemsize = self.config, DTYPE_BYTES[dtype_name(kv_dtype)]
        if m := c.latent:
            return self.layers * (m.cached_width * itemsize + (m.index_width + 4.0 if m.index_topk else 0.0))
        kept = sum(
            count * (min(1.0, window / context_tokens) if window and context_tokens else 1.0)
            for window, count in self.attention_windows
        )
        return 2.0 * kept * self.kv_heads_per_device(tensor_parallel) * c.head_dim * itemsize

    def state_bytes_per_request(self, tensor_parallel: int = 1) -> float:
        """Bytes of the states of linear attention, in float32, and of the tails of their convolutions."""
        c = self.config
        if not (g := c.linear):
            return 0.0
        tail = (g.kernel - 1) * (2 * g.key_heads * g.key_width + g.value_heads * g.value_width)
        return sum(c.linear_layers) * (4.0 * g.state_elements + 2.0 * tail) / tensor_parallel

    def activation_bytes(self, tokens: int, tensor_parallel: int = 1, *, rows: int | None = None) -> float:
        """Working memory of a step of `tokens` tokens, `rows` of which get logits (all, at most 1024, if not said).

        Hidden state, residual and normed copy, the widest intermediate, and logits twice in float32.
        """
        c, tp = self.config, tensor_parallel
        widest = 3 * c.intermediate_size / tp
        if c.is_moe:
            widest = max(widest, 3 * c.moe_intermediate_size * c.num_experts_per_tok / tp)
        query, key_value = c.query_width, 2 * c.key_value_width
        if m := c.latent:
            query = c.num_attention_heads * (m.nope_width + m.rope_width)
            key_value = c.num_attention_heads * (2 * m.nope_width + m.value_width)
        attention = (2 * query + key_value) / tp
        logits = min(tokens, 1024) if rows is None else rows
        return tokens * 2.0 * (3 * c.hidden_size + max(widest, attention)) + logits * c.vocab_size * 8.0

    def flops(self, shape: BatchShape) -> float:
        """Useful FLOPs of a step on all devices together, 2 per multiply-add."""
        c = self.config
        linear = 2.0 * c.active_matrix_elements * shape.new_tokens + 2.0 * c.head_elements * shape.emitted
        pairs = sum(new * (cached + 0.5 * (new + 1)) for new, cached in shape.prefill) + shape.decode_context_tokens
        width: float = c.query_width
        if m := c.latent:
            width = c.num_attention_heads * (m.nope_width + m.rope_width + m.value_width) / 2
        return linear + 4.0 * (self.layers - sum(c.linear_layers)) * width * pairs


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
    expert_parallel: int = 1,
    attention_data_parallel: int = 1,
    pipeline_parallel: int = 1,
    context_tokens: float | None = None,
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
        overhead_bytes: what the engine's memory profile counts beside activations; by default 0.15 GB, or 0.5 GB where
            devices hold communicator buffers. With it the blocks that vLLM 0.11 to 0.19 logged for six deployments come out
            within 2 %; context and captured graphs live in the part of the memory the engine does not fill.
        expert_parallel: groups of devices that the experts are dealt to.
        attention_data_parallel: groups that each hold the keys and values of their own requests.
        pipeline_parallel: stages, of which the fullest decides.
        context_tokens: length of a typical request where windowed layers give up what they no longer see; see
            `ModelDescription.kv_bytes_per_token`.

    Raises:
        InputError: the fraction is not within (0, 1], or something does not fit: the message says what and by how much.
    """
    where = f"{model.name} on {tensor_parallel} x {device.name}"
    if not 0 < gpu_memory_utilization <= 1:
        raise InputError(where, "gpu_memory_utilization", gpu_memory_utilization, "must lie in (0, 1]")
    budget = device.hbm_bytes * gpu_memory_utilization
    if overhead_bytes is None:
        overhead_bytes = 0.15e9 if tensor_parallel == 1 else 0.5e9
    left = budget
    degrees = {"expert_parallel": expert_parallel, "attention_data_parallel": attention_data_parallel}
    heads_over = tensor_parallel // attention_data_parallel
    fullest = math.ceil(model.layers / pipeline_parallel) / model.layers  # embedding and output matrix are shared out like it
    token_bytes = fullest * model.kv_bytes_per_token(heads_over, kv_dtype, context_tokens=context_tokens)
    for what, size in (
        ("weights", fullest * model.weight_bytes(tensor_parallel, weight_dtype, **degrees)),
        ("engine overhead", overhead_bytes),
        ("activations", model.activation_bytes(max_num_batched_tokens, tensor_parallel)),
        ("one token of KV cache", token_bytes),
    ):
        if size > left:
            need = f"{size / 1e9:.1f} GB of {what} per device, {max(left, 0) / 1e9:.1f} GB left of {budget / 1e9:.1f} GB"
            raise InputError(where, "memory", f"{device.hbm_bytes / 1e9:.1f} GB", f"does not fit: {need}")
        if what != "one token of KV cache":
            left -= size
    return int(attention_data_parallel * (left // token_bytes))
