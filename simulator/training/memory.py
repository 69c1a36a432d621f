"""Bytes one rank holds at its fullest: weights, gradients, optimizer, activations, buffers.

Activations follow Korthikanti et al. (arXiv:2205.05198, section 4 and table 2): per layer s b h (34 + 5 a s / h) bytes in
16 bits where scores are written out, of which tensor parallelism splits 24 + 5 a s / h and sequence parallelism the rest too;
full recomputation keeps the layer's input, selective recomputation drops the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.pipeline_time import in_flight
from llmlab.simulator.training.plan import OPTIMIZERS, Framework, ParallelPlan, framework

FSDP_GATHERED_LAYERS = 2.0
"""Layers whose whole weights are held at once: the running one and the one gathered ahead."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, by what they are for; `margin_bytes` is fragmentation, context and libraries."""

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    logits_bytes: float
    buffers_bytes: float
    margin_bytes: float

    @property
    def total_bytes(self) -> float:
        """All of it."""
        return float(sum(getattr(self, item.name) for item in fields(self)))

    @property
    def total_gib(self) -> float:
        """All of it in GiB."""
        return self.total_bytes / 2**30


@lru_cache(maxsize=4096)
def layer_weights(model: ModelDescription) -> tuple[float, float]:
    """Weights of a layer that every rank of an expert group holds a part of by tensor parallelism, and those of experts."""
    experts = others = 0.0
    for layer in range(model.layers):
        for name, shape in model.config.layer_shapes(layer).items():
            if name.startswith("mlp.experts."):
                experts += math.prod(shape)
            else:
                others += math.prod(shape)
    return others / model.layers, experts / model.layers


def stage_weights(model: ModelDescription, plan: ParallelPlan, stage: int) -> tuple[float, float]:
    """Weights one rank of a stage holds before anything is sharded over data: dense ones, and those of experts.

    A tied matrix is held by the first and by the last stage.
    """
    c = model.config
    dense, experts = layer_weights(model)
    layers = plan.layers_of_stages(model.layers)[stage]
    table = float(c.vocab_size * c.hidden_size)
    held = layers * dense
    if stage == 0:
        held += table + c.learned_positions * c.hidden_size
    if stage == plan.pp - 1 and not (c.tie_word_embeddings and plan.pp == 1):
        held += table
    if stage == plan.pp - 1:
        held += c.hidden_size * (1 + c.norm_bias)
    expert_ranks = plan.ep if plan.ep > 1 else plan.tp
    return held / plan.tp, layers * experts / expert_ranks


def activation_bytes_per_layer(
    model: ModelDescription, plan: ParallelPlan, habits: Framework | None = None
) -> tuple[float, float]:
    """Bytes one microbatch leaves behind per layer until its backward, and what recomputing one layer needs for the moment.

    >>> from llmlab.simulator.training.plan import gpt
    >>> plan = ParallelPlan(tp=8, microbatch=1, sequence=2048, recompute="none", framework="megatron-sc21")
    >>> kept, _ = activation_bytes_per_layer(gpt(96, 12288, 96, 51200, 2048), plan)
    >>> kept == 2048 * 12288 * (10 + 24 / 8 + 5 * 96 * 2048 / 12288 / 8)
    True
    """
    c, habits = model.config, habits or framework(plan.framework)
    tokens = plan.microbatch * plan.sequence / plan.cp
    D, tp = c.hidden_size, plan.tp
    width = 2.0 if plan.precision == "float32" else 1.0
    query, key_value = c.query_width, 2 * c.key_value_width
    if c.gated_mlp or c.norms_per_layer != 2:
        inter = c.intermediate_size
        if c.is_moe:
            inter = c.moe_intermediate_size * c.num_experts_per_tok + c.shared_expert_intermediate_size
        dropped = 0.0  # no dropout in gated families
        whole = 2.0 * (4 * D) + dropped  # inputs of both norms and of both first matrices
        split = 2.0 * (2 * query + key_value) + 2.0 * (3 if c.gated_mlp else 2) * inter
        if c.gated_mlp:
            split += 2.0 * inter  # input of the last matrix
    else:
        whole = 10.0 * D
        split = 2.0 * (2 * query + key_value) + 4.0 * c.intermediate_size
    scores = 0.0 if habits.fused_attention else 5.0 * c.num_attention_heads * plan.sequence
    kept = tokens * width * (whole / (tp if plan.sequence_parallel else 1) + (split + scores) / tp)
    if plan.recompute == "full":
        inputs = 2.0 * tokens * D * width / (tp if plan.sequence_parallel else 1)
        return inputs, kept
    if plan.recompute == "selective" and habits.selective_by_operator:
        inter = c.moe_intermediate_size * c.num_experts_per_tok if c.is_moe else c.intermediate_size
        outputs = query + key_value + 2 * D + (2 if c.gated_mlp else 1) * inter
        return 2.0 * tokens * width * (D + (0.5 * outputs + query) / tp), kept
    if plan.recompute == "selective":
        return kept - tokens * width * scores / tp, tokens * width * scores / tp
    return kept, 0.0


def rank_memory(model: ModelDescription, plan: ParallelPlan, stage: int = 0, habits: Framework | None = None) -> RankMemory:
    """Bytes one rank of this pipeline stage holds at its fullest moment.

    Mixed precision with Adam is 16 bytes per weight: 2 weights, 2 gradients, 12 for master weights and two moments
    (arXiv:1910.02054, section 3.1); 18 where gradients are summed in float32.

    >>> from llmlab.simulator.training.plan import gpt
    >>> model, plan = gpt(24, 1024, 16, 51200, 1024), ParallelPlan(framework="ddp", global_batch=1, sequence=1024)
    >>> m = rank_memory(model, plan)
    >>> round((m.weights_bytes + m.gradients_bytes + m.optimizer_bytes) / model.parameters, 3)
    16.0
    """
    c, habits = model.config, habits or framework(plan.framework)
    dense, experts = stage_weights(model, plan, stage)
    groups = plan.shard_over or plan.dp * plan.cp
    expert_groups = max(1, plan.dp * plan.cp * plan.tp // plan.ep) if plan.ep > 1 else groups
    item = 4.0 if plan.precision == "float32" else 2.0

    def shared(per_weight: float, from_stage: int) -> float:
        over, expert_over = (groups, expert_groups) if plan.zero_stage >= from_stage else (1, 1)
        return per_weight * (dense / over + experts / expert_over)

    weights = shared(item, 3)
    buffers = 0.0
    if plan.zero_stage == 3:
        layer_dense, layer_experts = layer_weights(model)
        largest = max(layer_dense + layer_experts, c.vocab_size * c.hidden_size / FSDP_GATHERED_LAYERS) / plan.tp
        buffers = FSDP_GATHERED_LAYERS * largest * (item + habits.reduce_bytes / 2.0)
    gradients = shared(item if plan.zero_stage == 3 else habits.gradient_bytes, 2)
    state = OPTIMIZERS[plan.optimizer] + (4.0 if item == 2.0 else 0.0)
    optimizer = 0.0 if plan.offload else shared(state, 1)
    kept, momentary = activation_bytes_per_layer(model, plan, habits)
    layers = plan.layers_of_stages(model.layers)[stage]
    held = in_flight(plan.schedule, plan.pp, stage, plan.microbatches, plan.virtual_stages)
    activations = kept * layers * held + momentary
    tokens = plan.microbatch * plan.sequence / plan.cp
    if stage == 0 and not c.gated_mlp:
        activations += tokens * c.hidden_size * held  # dropout mask of the embedding
    logits = (
        tokens * (10.0 * c.vocab_size / plan.tp) if stage == plan.pp - 1 else 0.0
    )  # 16-bit logits, float32 ones and their gradient
    if plan.pp > 1:
        buffers += 4.0 * tokens * c.hidden_size * item
    counted = weights + gradients + optimizer + activations + logits + buffers
    margin = (habits.memory_margin - 1.0) * counted + habits.memory_constant_bytes
    return RankMemory(weights, gradients, optimizer, activations, logits, buffers, margin)


def fullest_rank(model: ModelDescription, plan: ParallelPlan, habits: Framework | None = None) -> tuple[int, RankMemory]:
    """The pipeline stage that needs most, and what it needs."""
    candidates = sorted({0, min(1, plan.pp - 1), plan.pp - 1})
    found = [(stage, rank_memory(model, plan, stage, habits)) for stage in candidates]
    return max(found, key=lambda pair: pair[1].total_bytes)


def check_memory(
    model: ModelDescription, plan: ParallelPlan, device: Device, where: str = "plan", habits: Framework | None = None
) -> RankMemory:
    """What the fullest rank holds, if it fits.

    Raises:
        InputError: it does not; the line names every part.
    """
    stage, memory = fullest_rank(model, plan, habits)
    if memory.total_bytes > device.hbm_bytes:
        parts = ", ".join(
            f"{item.name.removesuffix('_bytes')} {getattr(memory, item.name) / 1e9:.1f}" for item in fields(memory)
        )
        raise InputError(
            where,
            "memory",
            f"{memory.total_bytes / 1e9:.1f} GB",
            f"does not fit {device.name} with {device.hbm_bytes / 1e9:.1f} GB on stage {stage}: {parts} GB",
        )
    return memory
