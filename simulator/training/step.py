"""Seconds of one training step: stages in a pipeline, what communication is not hidden, optimizer, a constant per step.

Units: seconds, bytes, FLOPs, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from llmlab.simulator.hardware.device import Device, load_device_sheet
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.memory import RankMemory, check_memory, fullest_rank, layer_weights, stage_weights
from llmlab.simulator.training.network import Network, Strides
from llmlab.simulator.training.operators import PassCost, ends_cost, joined, layer_cost, math_dtype, training_flops
from llmlab.simulator.training.pipeline_time import StageTime, pipeline_seconds, replayed_seconds
from llmlab.simulator.training.plan import Framework, ParallelPlan, framework

OPTIMIZER_PASSES = 1.6
"""Times the float32 states move: read and written once, with casts, norms and clipping beside them."""

HOST_OPTIMIZER_BYTES_PER_S = 60e9
"""Memory bandwidth a host's optimizer reaches per device (ZeRO-Offload's fused Adam, arXiv:2101.06840, section 5)."""


@dataclass(frozen=True)
class StepBreakdown:
    """Where the seconds of a step go, on the slowest rank; they add up to the step.

    Attributes:
        compute_s: matrices, attention, norms and loss of the slowest stage's microbatches, host waits included.
        recompute_s: forward passes done again.
        tensor_s, context_s, expert_s: collectives inside layers that nothing hides.
        bubble_s: waiting for other stages, hand-overs included.
        data_s: gradients and weights exchanged over data-parallel ranks, as far as nothing hides them.
        optimizer_s: the update of the weights.
        constant_s: once per step.
    """

    compute_s: float
    recompute_s: float
    tensor_s: float
    context_s: float
    expert_s: float
    bubble_s: float
    data_s: float
    optimizer_s: float
    constant_s: float

    @property
    def total_s(self) -> float:
        """The step."""
        return float(sum(getattr(self, item.name) for item in fields(self)))


@dataclass(frozen=True)
class StepPrediction:
    """One training step of a plan.

    Attributes:
        mfu: model FLOPs (scores in full) over what all devices could do at their peak in that time.
        hardware_flops_per_s: per device, with recomputation counted as work.
        stages: one microbatch on each pipeline rank.
        handover_s: of what a stage hands to the next.
    """

    plan: ParallelPlan
    seconds: float
    breakdown: StepBreakdown
    memory: RankMemory
    tokens_per_s: float
    flops_per_s: float
    hardware_flops_per_s: float
    mfu: float
    stages: tuple[StageTime, ...] = ()
    handover_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        plan = {item.name: getattr(self.plan, item.name) for item in fields(self.plan)}
        return {
            "plan": plan,
            "gpus": self.plan.gpus,
            "iteration_s": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_gpu": self.tokens_per_s / self.plan.gpus,
            "samples_per_s": self.plan.global_batch / self.seconds,
            "tflops_per_gpu": self.flops_per_s / 1e12,
            "hardware_tflops_per_gpu": self.hardware_flops_per_s / 1e12,
            "mfu": self.mfu,
            "breakdown_s": {
                item.name.removesuffix("_s"): getattr(self.breakdown, item.name) for item in fields(self.breakdown)
            },
            "memory_bytes": {item.name.removesuffix("_bytes"): getattr(self.memory, item.name) for item in fields(self.memory)}
            | {"total": self.memory.total_bytes},
        }


@dataclass(frozen=True)
class _Layer:
    """One layer of one microbatch with its collectives; seconds."""

    forward: float
    backward_input: float
    backward_weight: float
    recompute: float
    tensor: float
    context: float
    expert: float

    @property
    def communication(self) -> float:
        return self.tensor + self.context + self.expert


def _layer(model: ModelDescription, device: Device, plan: ParallelPlan, network: Network, habits: Framework) -> _Layer:
    cost, c = layer_cost(model, device.name, plan, habits), model.config
    strides = Strides.of(plan)
    tokens = plan.microbatch * plan.sequence / plan.cp
    width = 4.0 if plan.precision == "float32" else 2.0
    sums = 1.0 if c.parallel_block else 2.0
    forward_host, backward_host = cost.forward_kernels * habits.launch_s, cost.backward_kernels * habits.launch_s
    if plan.tp > 1:
        forward_host += sums * habits.collective_launch_s
        backward_host += sums * habits.collective_launch_s
    one = network.all_reduce_s(tokens * c.hidden_size * width, plan.tp) if plan.tp > 1 else 0.0
    tensor_forward = sums * one * (1.0 - habits.tp_overlap)
    device_backward = cost.backward_input_s + cost.backward_weight_s
    forward = max(0.0, joined(cost.forward_s + tensor_forward, forward_host) - tensor_forward)
    backward = max(0.0, joined(device_backward + tensor_forward, backward_host) - tensor_forward)
    weight_part = cost.backward_weight_s / device_backward if device_backward else 0.0
    recompute = tensor_again = 0.0
    if plan.recompute == "full":
        recompute, tensor_again = forward, tensor_forward
    elif plan.recompute == "selective" and not habits.fused_attention:
        recompute = cost.attention_s
    context = 0.0
    if plan.cp > 1:  # ring attention: keys and values go round while scores are computed (arXiv:2310.01889)
        block = 2.0 * tokens * c.key_value_width / plan.tp * width
        passes = (plan.cp - 1) * network.send_s(block, strides.cp)
        context = max(0.0, passes - cost.attention_s) + max(0.0, 2.0 * passes - 2.5 * cost.attention_s)
    expert = 0.0
    if plan.ep > 1:
        sparse = sum(c.sparse_layers) / model.layers
        sent = tokens * c.num_experts_per_tok * c.hidden_size * width / plan.tp
        copies = network.copies_beyond_node(c.num_experts_per_tok, plan.ep) if habits.once_per_node else 1.0
        one = network.all_to_all_s(sent, plan.ep, beyond=copies)  # neighbours, each with its part of the tokens
        expert = sparse * 4.0 * (1.0 - habits.expert_overlap) * one
        if plan.recompute == "full":
            expert *= 1.5
    return _Layer(
        forward,
        backward * (1 - weight_part),
        backward * weight_part,
        recompute,
        2 * tensor_forward + tensor_again,
        context,
        expert,
    )


def _exposed_fully_sharded(
    model: ModelDescription, plan: ParallelPlan, layer: _Layer, network: Network, habits: Framework, stride: int
) -> float:
    """Seconds per microbatch that gathering weights (forward and backward) and scattering gradients add to computing.

    A layer's weights are gathered while the one before it computes; what is longer than computing shows.
    """
    over = plan.shard_over or plan.dp
    weights = sum(layer_weights(model)) / plan.tp
    item = 4.0 if plan.precision == "float32" else 2.0
    gather = network.reduce_scatter_s(weights * item, over, stride)
    scatter = network.reduce_scatter_s(weights * habits.reduce_bytes, over, stride)
    forward = layer.forward + layer.communication / 3
    backward = layer.backward_input + layer.backward_weight + layer.recompute + layer.communication * 2 / 3
    hidden = habits.dp_overlap
    shown = max(gather - hidden * forward, (1 - hidden) * gather)
    shown += max(gather + scatter - hidden * backward, (1 - hidden) * (gather + scatter))
    c = model.config
    table = c.vocab_size * c.hidden_size / plan.tp
    ends = network.reduce_scatter_s(table * item, over, stride) + network.reduce_scatter_s(
        table * habits.reduce_bytes, over, stride
    )
    return model.layers * shown + gather + scatter + ends


def _stages(
    model: ModelDescription,
    plan: ParallelPlan,
    layer: _Layer,
    ends: tuple[PassCost, PassCost],
    habits: Framework,
    extra_s: float,
) -> list[StageTime]:
    found = []
    layers = plan.layers_of_stages(model.layers)
    for stage, count in enumerate(layers):
        forward = count * (layer.forward + layer.communication / 3)
        back = count * (layer.backward_input + layer.recompute + layer.communication * 2 / 3)
        weight = count * layer.backward_weight
        for at, end in ((0, ends[0]), (plan.pp - 1, ends[1])):
            if stage == at:
                forward += joined(end.forward_s, end.forward_kernels * habits.launch_s)
                both = end.backward_input_s + end.backward_weight_s
                whole = joined(both, end.backward_kernels * habits.launch_s)
                weight += whole * (end.backward_weight_s / both if both else 0.0)
                back += whole * (end.backward_input_s / both if both else 1.0)
        handed = plan.virtual_stages * habits.handover_s if plan.pp > 1 else 0.0
        found.append(StageTime(forward + handed, back + extra_s + handed, weight))
    return found


def _data_parallel(model: ModelDescription, plan: ParallelPlan, network: Network, habits: Framework, busy_s: float) -> float:
    """Seconds of summing gradients (and gathering new weights) that show at the end of a step.

    They hide behind `busy_s` at most: the microbatches that drain from the pipeline.
    """
    if plan.zero_stage == 3:
        over = plan.shard_over or plan.dp
        if over == plan.dp:
            return 0.0
        held = sum(stage_weights(model, plan, 0)) / over
        stride = plan.tp * plan.cp * over
        return (1.0 - habits.dp_overlap) * network.all_reduce_s(held * habits.reduce_bytes, plan.dp // over, stride)
    ranks = plan.dp * plan.cp
    stride = plan.tp
    seconds = 0.0
    for stage in {0, plan.pp - 1}:
        dense, experts = stage_weights(model, plan, stage)
        if plan.zero_stage:
            one = network.reduce_scatter_s(dense * habits.reduce_bytes, ranks, stride) + network.reduce_scatter_s(
                2.0 * dense, ranks, stride
            )
        else:
            one = network.all_reduce_s(dense * habits.reduce_bytes, ranks, stride)
        if experts:
            groups = max(1, ranks * plan.tp // plan.ep) if plan.ep > 1 else ranks
            one += network.all_reduce_s(experts * habits.reduce_bytes, groups, plan.ep if plan.ep > 1 else stride)
        if plan.pp > 1 and model.config.tie_word_embeddings:
            table = model.config.vocab_size * model.config.hidden_size / plan.tp
            one += network.all_reduce_s(table * habits.reduce_bytes, 2, Strides.of(plan).pp)
        seconds = max(seconds, one)
    hidden = min(habits.dp_overlap * seconds, busy_s)
    return seconds - hidden


def _optimizer(model: ModelDescription, plan: ParallelPlan, device: Device, host_link: float) -> float:
    dense, experts = stage_weights(model, plan, 0)
    over = (plan.shard_over or plan.dp * plan.cp) if plan.zero_stage else 1
    updated = dense / over + experts / (
        max(1, plan.dp * plan.cp * plan.tp // plan.ep) if plan.zero_stage and plan.ep > 1 else over
    )
    moved = 32.0 * OPTIMIZER_PASSES * updated
    if plan.offload:
        return moved / HOST_OPTIMIZER_BYTES_PER_S + 4.0 * updated / host_link
    return moved / device.hbm_bytes_per_s


def network_of(device: Device, habits: Framework, node_bytes_per_s: float = 0.0, node_devices: int = 0) -> Network:
    """The network a framework finds on this device's nodes."""
    return Network.of(device, habits.network_efficiency, node_bytes_per_s=node_bytes_per_s, node_devices=node_devices)


def predict_step(
    model: ModelDescription,
    plan: ParallelPlan,
    device: Device | str,
    *,
    habits: Framework | None = None,
    network: Network | None = None,
    fit_memory: bool = True,
    replayed: bool = False,
) -> StepPrediction:
    """Seconds, throughput and memory of one step.

    Args:
        model: what is trained.
        plan: how; checked first.
        device: every rank's.
        habits: constants other than those of the plan's framework.
        network: links other than those of the device's usual node.
        fit_memory: refuse a plan whose fullest rank does not fit.
        replayed: time the pipeline by replaying its schedule, action by action, instead of by closed form.

    Raises:
        InputError: the plan cannot run, or does not fit.
    """
    plan.check(model)
    if isinstance(device, str):
        device = load_device_sheet(device)
    habits = habits or framework(plan.framework)
    memory = check_memory(model, plan, device, habits=habits) if fit_memory else fullest_rank(model, plan, habits)[1]
    network = network or network_of(device, habits)
    strides = Strides.of(plan)
    layer = _layer(model, device, plan, network, habits)
    ends = ends_cost(model, device.name, plan, habits)
    sharded = (
        _exposed_fully_sharded(model, plan, layer, network, habits, strides.dp) if plan.zero_stage == 3 and plan.dp > 1 else 0.0
    )
    stages = _stages(model, plan, layer, ends, habits, sharded)
    width = 4.0 if plan.precision == "float32" else 2.0
    handover = 0.0
    if plan.pp > 1:
        part = plan.tp if plan.sequence_parallel else 1
        size = plan.microbatch * plan.sequence / plan.cp * model.config.hidden_size * width / part
        handover = network.send_s(size, strides.pp)
    timed = replayed_seconds if replayed and plan.pp > 1 else pipeline_seconds
    running = timed(plan.schedule, stages, plan.microbatches, virtual_stages=plan.virtual_stages, transfer_s=handover)
    slowest = max(range(plan.pp), key=lambda i: stages[i].total_s)
    busy = plan.microbatches * stages[slowest].total_s
    count = plan.layers_of_stages(model.layers)[slowest] * plan.microbatches
    data = _data_parallel(model, plan, network, habits, stages[slowest].total_s * min(plan.pp, plan.microbatches))
    optimizer = _optimizer(model, plan, device, device.host_link_bytes_per_s)
    data_sharded = plan.microbatches * sharded
    handed = 2.0 * plan.microbatches * plan.virtual_stages * habits.handover_s if plan.pp > 1 else 0.0
    parts = (count * layer.recompute, count * layer.tensor, count * layer.context, count * layer.expert)
    breakdown = StepBreakdown(
        busy - sum(parts) - data_sharded - handed,
        *parts,
        running - busy + handed,
        data + data_sharded,
        optimizer,
        habits.iteration_s,
    )
    seconds = breakdown.total_s
    useful = training_flops(model, plan.global_batch, plan.sequence)
    hardware = training_flops(model, plan.global_batch, plan.sequence, recompute=plan.recompute == "full")
    peak = device.peak_flops_per_s(math_dtype(plan.precision))
    return StepPrediction(
        plan,
        seconds,
        breakdown,
        memory,
        plan.tokens / seconds,
        useful / seconds / plan.gpus,
        hardware / seconds / plan.gpus,
        useful / seconds / plan.gpus / peak,
        tuple(stages),
        handover,
    )


def tables(step: StepPrediction) -> list[tuple[str, list[dict[str, Any]]]]:
    """The prediction as titled tables."""
    shown = step.to_json()
    figures = ("iteration_s", "tokens_per_s", "tokens_per_s_per_gpu", "samples_per_s", "tflops_per_gpu", "mfu")
    seconds = [
        {"part": name, "seconds": value, "share": f"{value / step.seconds:.1%}"} for name, value in shown["breakdown_s"].items()
    ]
    memory = [{"part": name, "GB": value / 1e9} for name, value in shown["memory_bytes"].items()]
    return [
        (f"One step on {step.plan.gpus} devices", [{name: shown[name] for name in figures}]),
        ("Where the seconds go (slowest rank)", seconds),
        ("Memory of the fullest rank", memory),
    ]
