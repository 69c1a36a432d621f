"""Bytes one rank holds at its fullest: weights, gradients, optimizer, activations, buffers.

Activations follow Korthikanti et al. (arXiv:2205.05198, section 4 and table 2): per layer s b h (34 + 5 a s / h) bytes in
16 bits where scores are written out, of which tensor parallelism splits 24 + 5 a s / h and sequence parallelism the rest too;
full recomputation keeps the layer's input, selective recomputation drops the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.simulator.cost.curves import FLOATS
from llmlab.simulator.hardware.device import Device
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.pieces import Get, Setting, of_plan, piece
from llmlab.simulator.training.pipeline_time import BOTH_WAYS, FOLDED, in_flight
from llmlab.simulator.training.plan import OPTIMIZERS, Framework, ParallelPlan, framework

NVFP4_BYTES = 0.5 + 1.0 / 16
"""Bytes of a 4-bit element with its 8-bit scale per 16 of them (arXiv:2509.25149, section 2)."""

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


@lru_cache(maxsize=4096)
def optimizer_bytes(model: ModelDescription, optimizer: str) -> float:
    """Bytes of an optimizer's state per weight beside the master copy, mean over the weights of the model.

    Adafactor keeps a float32 sum per row and column of a matrix, and one per element of a vector. Muon keeps a momentum for
    hidden matrices, and Adam's two moments for the others.

    >>> from llmlab.simulator.training.plan import gpt
    >>> model = gpt(24, 1024, 16, 51200, 1024)
    >>> optimizer_bytes(model, "adam"), 0 < optimizer_bytes(model, "adafactor") < 0.01, 4 < optimizer_bytes(model, "muon") < 5
    (8.0, True, True)
    """
    if optimizer not in ("adafactor", "muon"):
        return OPTIMIZERS[optimizer]
    c = model.config
    ends = [(c.vocab_size, c.hidden_size)] * (1 if c.tie_word_embeddings else 2)
    layers = [shape for layer in range(model.layers) for shape in c.layer_shapes(layer).values()]
    total = sum(math.prod(shape) for shape in [*layers, *ends])
    if optimizer == "muon":
        hidden = sum(math.prod(shape) for shape in layers if len(shape) > 1)
        return (OPTIMIZERS["muon"] * hidden + OPTIMIZERS["adam"] * (total - hidden)) / total
    sums = sum(math.prod(shape[:-2]) * sum(shape[-2:]) for shape in [*layers, *ends])
    return 4.0 * sums / total


def item_bytes(precision: str) -> float:
    """Bytes of a weight that is multiplied with; 4-bit training keeps a copy of its 16-bit weights (arXiv:2509.25149).

    >>> item_bytes("bfloat16"), item_bytes("nvfp4")
    (2.0, 2.5625)
    """
    return {"float32": 4.0, "nvfp4": 2.0 + NVFP4_BYTES}.get(precision, 2.0)


def width_bytes(precision: str) -> float:
    """Bytes of an activation between layers, and of a weight that travels."""
    return 4.0 if precision == "float32" else 2.0


def stage_weights(model: ModelDescription, plan: ParallelPlan, stage: int) -> tuple[float, float]:
    """Weights one rank of a stage holds before anything is sharded over data: dense ones, and those of experts.

    A tied matrix is held by the first and by the last stage. Schedules that fold the model have both ends on the first rank;
    those that run two copies hold two stages on each.
    """
    if plan.schedule in BOTH_WAYS and plan.pp > 1:
        one, other = (_one_stage(model, plan, at) for at in (stage, plan.pp - 1 - stage))
        return one[0] + other[0], one[1] + other[1]
    return _one_stage(model, plan, stage)


def _one_stage(model: ModelDescription, plan: ParallelPlan, stage: int) -> tuple[float, float]:
    c = model.config
    dense, experts = layer_weights(model)
    layers = plan.layers_of_stages(model.layers)[stage]
    table = float(c.vocab_size * c.hidden_size)
    held = layers * dense
    last = 0 if plan.schedule in FOLDED else plan.pp - 1
    if stage == 0:
        held += table + c.learned_positions * c.hidden_size
    if stage == last and not (c.tie_word_embeddings and last == 0):
        held += table
    if stage == last:
        held += c.hidden_size * (1 + c.norm_bias)
    expert_ranks = plan.ep if plan.ep > 1 else plan.tp
    return held / plan.tp * plan.tensor_depth, layers * experts / expert_ranks


def sharding_ranks(plan: ParallelPlan) -> tuple[int, int]:
    """Ranks that hold the same dense weights and may share out what is kept for them; the same for experts."""
    copies = 2 if plan.schedule in BOTH_WAYS else 1
    groups = plan.shard_over or plan.dp * plan.cp * copies
    experts = max(1, plan.dp * plan.cp * plan.tp * copies // plan.ep) if plan.ep > 1 else groups
    return groups, experts


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
    norms = tp if plan.sequence_parallel or plan.tensor != "1d" else 1
    query, key_value = c.query_width, 2 * c.key_value_width
    if c.gated_mlp or c.norms_per_layer != 2:
        inter = _feed_forward_width(model)
        whole = 2.0 * (4 * D)  # inputs of both norms and of both first matrices; no dropout in gated families
        split = 2.0 * (2 * query + key_value) + 2.0 * (3 if c.gated_mlp else 2) * inter
        if c.gated_mlp:
            split += 2.0 * inter  # input of the last matrix
    else:
        whole = 10.0 * D
        split = 2.0 * (2 * query + key_value) + 4.0 * c.intermediate_size
    if plan.precision == "nvfp4":  # inputs of matrices are kept in 4 bits
        whole -= (2.0 - NVFP4_BYTES) * 2 * D
        split -= (2.0 - NVFP4_BYTES) * (query + _feed_forward_width(model))
    scores = 0.0 if habits.fused_attention else 5.0 * c.num_attention_heads * plan.sequence
    kept = tokens * width * (whole / norms + (split + scores) / tp)
    if plan.recompute == "full":
        inputs = 2.0 * tokens * D * width / norms
        return inputs, kept
    if plan.recompute == "selective" and habits.selective_by_operator:
        inter = c.moe_intermediate_size * c.num_experts_per_tok if c.is_moe else c.intermediate_size
        outputs = query + key_value + 2 * D + (2 if c.gated_mlp else 1) * inter
        return 2.0 * tokens * width * (D + (0.5 * outputs + query) / tp), kept
    if plan.recompute == "selective":
        return kept - tokens * width * scores / tp, tokens * width * scores / tp
    return kept, 0.0


def _feed_forward_width(model: ModelDescription) -> int:
    """Feed-forward columns a token visits in a layer."""
    c = model.config
    if c.is_moe:
        return c.moe_intermediate_size * c.num_experts_per_tok + c.shared_expert_intermediate_size
    return c.intermediate_size


@piece("tp", "cp", "microbatch", "sequence", "sequence_parallel", "recompute", "precision", "tensor", "tensor_depth")
def activation_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Bytes of a microbatch: kept per layer, needed for the moment, embedding's dropout mask, logits, hand-over buffers."""
    model, c = setting.model, setting.model.config
    kept, momentary = activation_bytes_per_layer(model, plan, setting.habits)
    spread = 1 if plan.tensor == "1d" else plan.tp
    tokens = plan.microbatch * plan.sequence / plan.cp / spread
    mask = 0.0 if c.gated_mlp else tokens * c.hidden_size
    logits = tokens * (10.0 * c.vocab_size / plan.tp * spread)  # 16-bit logits, float32 ones and their gradient
    return kept, momentary, mask, logits, 4.0 * tokens * c.hidden_size * width_bytes(plan.precision)


@piece("tp", "pp", "ep", "schedule", "tensor_depth")
def weights_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Dense weights and those of experts (`stage_weights`) of the stages looked at."""
    return tuple(value for stage in looked_at(plan.pp) for value in stage_weights(setting.model, plan, stage))


SHARING = ("dp", "tp", "cp", "ep", "zero_stage", "shard_over", "schedule")
"""Fields that say over how many ranks anything is shared out."""


@piece(*SHARING, "precision", "optimizer", "offload", "offload_weights", "tensor_depth")
def state_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Bytes per weight and the ranks dense weights and experts are shared over, of weights, gradients and optimizer state.

    Mixed precision with Adam is 16 bytes per weight: 2 weights, 2 gradients, 12 for master weights and two moments
    (arXiv:1910.02054, section 3.1); 18 where gradients are summed in float32. The last is the buffers of gathered weights.
    """
    model, habits, c = setting.model, setting.habits, setting.model.config
    groups, expert_groups = sharding_ranks(plan)
    item, whole = item_bytes(plan.precision), width_bytes(plan.precision)
    buffers = 0.0
    if plan.zero_stage == 3:
        layer_dense, layer_experts = layer_weights(model)
        largest = max(layer_dense + layer_experts, c.vocab_size * c.hidden_size / FSDP_GATHERED_LAYERS) / plan.tp
        buffers = FSDP_GATHERED_LAYERS * largest * plan.tensor_depth * (item + habits.reduce_bytes / 2.0)
    gradients = whole if plan.zero_stage == 3 else habits.gradient_bytes
    state = optimizer_bytes(model, plan.optimizer) + (4.0 if whole == 2.0 else 0.0)
    found: list[float] = []
    for per_weight, from_stage in (
        (0.0 if plan.offload_weights else item, 3),
        (0.0 if plan.offload_weights else gradients, 2),
        (0.0 if plan.offload else state, 1),
    ):
        over = (groups, expert_groups) if plan.zero_stage >= from_stage else (1, 1)
        found += [per_weight, *map(float, over)]
    return *found, buffers


def state_bytes(state: Sequence[Any], weights: Sequence[Any]) -> tuple[Any, ...]:
    """Weights, gradients, optimizer and buffers of gathered weights of a stage, from the two pieces above."""
    dense, experts = weights
    parts = [state[at] * (dense / state[at + 1] + experts / state[at + 2]) for at in (0, 3, 6)]
    return *parts, state[9]


def held_counts(setting: Setting, plan: ParallelPlan, stage: int) -> tuple[float, ...]:
    """What a rank of a stage holds at its fullest: layers times microbatches, those at the embedding, logits, weight versions.

    Weight versions are one, but for PipeDream, which keeps those of every microbatch in flight (arXiv:1806.03377, section 3.3).
    """
    layers = plan.layers_of_stages(setting.model.layers)
    held = in_flight(plan.schedule, plan.pp, stage, plan.microbatches, plan.virtual_stages)
    own, folded, both = layers[stage], plan.schedule in FOLDED, plan.schedule in BOTH_WAYS and plan.pp > 1
    if both:
        own = max(own, layers[plan.pp - 1 - stage])
    ends = {0, plan.pp - 1} if both else {0}
    logits = 0.0
    if stage in ({0} if folded else ends if both else {plan.pp - 1}):
        # all forwards first: gpipe holds every microbatch's logits unless it computes them again
        logits = float(plan.microbatches) if plan.schedule == "gpipe" and plan.pp > 1 and plan.recompute != "full" else 1.0
    versions = held if plan.schedule == "pipedream" else 1.0
    return own * held, held if stage in ends else 0.0, logits, versions


def looked_at(pp: int) -> tuple[int, ...]:
    """Stages one of which is the fullest: both ends, the second, and the one before the middle (where Chimera's ways meet)."""
    return 0, min(1, pp - 1), max(0, pp // 2 - 1), pp - 1


@piece("schedule", "pp", "microbatches", "virtual_stages", "recompute")
def held_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """`held_counts` of the stages looked at, and the part of hand-over buffers there are (none without a pipeline)."""
    counts = (value for stage in looked_at(plan.pp) for value in held_counts(setting, plan, stage))
    return float(plan.pp > 1), *counts


def memory_parts(
    state: Sequence[Any], held: Sequence[Any], activation: Sequence[Any], passes_on: Any, habits: Framework
) -> tuple[Any, ...]:
    """The seven parts of `RankMemory` from the pieces of one stage, for one plan or for arrays of them."""
    weights, gradients, optimizer, gathered = state
    layers, at_embedding, with_logits, versions = held
    kept, momentary, mask, logit_bytes, hand_over = activation
    weights = weights * versions
    activations = kept * layers + momentary + mask * at_embedding
    logits = logit_bytes * with_logits
    buffers = gathered + hand_over * passes_on
    counted = weights + gradients + optimizer + activations + logits + buffers
    margin = (habits.memory_margin - 1.0) * counted + habits.memory_constant_bytes
    return weights, gradients, optimizer, activations, logits, buffers, margin


def fullest(get: Get, habits: Framework, xp: Any) -> tuple[Any, tuple[Any, ...]]:
    """Which of the stages looked at needs most, and its parts; for one plan or for arrays of them."""
    state, weights, activation = get(state_piece), get(weights_piece), get(activation_piece)
    passes_on, *counts = get(held_piece)
    where: Any = 0
    most: Any = None
    best: tuple[Any, ...] = ()
    for number in range(len(looked_at(1))):
        own = state_bytes(state, weights[2 * number : 2 * number + 2])
        parts = memory_parts(own, counts[4 * number : 4 * number + 4], activation, passes_on, habits)
        total = sum_of(parts)
        if most is None:
            most, best = total, parts
            continue
        more = total > most
        where, most = xp.where(more, number, where), xp.where(more, total, most)
        best = tuple(xp.where(more, new, old) for new, old in zip(parts, best))
    return where, best


def sum_of(parts: Sequence[Any]) -> Any:
    """The sum from left to right, as `RankMemory.total_bytes` adds."""
    total: Any = 0
    for part in parts:
        total = total + part
    return total


def rank_memory(model: ModelDescription, plan: ParallelPlan, stage: int = 0, habits: Framework | None = None) -> RankMemory:
    """Bytes one rank of this pipeline stage holds at its fullest moment.

    >>> from llmlab.simulator.training.plan import gpt
    >>> model, plan = gpt(24, 1024, 16, 51200, 1024), ParallelPlan(framework="ddp", global_batch=1, sequence=1024)
    >>> m = rank_memory(model, plan)
    >>> round((m.weights_bytes + m.gradients_bytes + m.optimizer_bytes) / model.parameters, 3)
    16.0
    """
    setting = _setting(model, plan, habits)
    state = state_bytes(state_piece.function(setting, plan), stage_weights(model, plan, stage))
    held = held_counts(setting, plan, stage)
    activation = activation_piece.function(setting, plan)
    return RankMemory(*memory_parts(state, held, activation, float(plan.pp > 1), setting.habits))


def _setting(model: ModelDescription, plan: ParallelPlan, habits: Framework | None) -> Setting:
    """A setting for memory alone, which neither device nor network change."""
    return Setting(model, None, habits or framework(plan.framework), None)  # type: ignore[arg-type]


def fullest_rank(model: ModelDescription, plan: ParallelPlan, habits: Framework | None = None) -> tuple[int, RankMemory]:
    """The pipeline stage that needs most, and what it needs."""
    setting = _setting(model, plan, habits)
    number, parts = fullest(of_plan(setting, plan), setting.habits, FLOATS)
    return looked_at(plan.pp)[number], RankMemory(*parts)


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
