"""Seconds of one training step: stages in a pipeline, what communication is not hidden, optimizer, a constant per step.

Units: seconds, bytes, FLOPs, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from llmlab.simulator.cost.curves import FLOATS
from llmlab.simulator.hardware.device import Device, load_device_sheet
from llmlab.simulator.model.description import Gemm, ModelDescription
from llmlab.simulator.training.memory import (
    SHARING,
    RankMemory,
    check_memory,
    fullest_rank,
    layer_weights,
    optimizer_bytes,
    sharding_ranks,
    stage_weights,
    weights_piece,
    width_bytes,
)
from llmlab.simulator.training.network import Network
from llmlab.simulator.training.operators import (
    PassCost,
    check_precision,
    ends_cost,
    joined,
    layer_cost,
    math_dtype,
    orthogonalization_flops,
    training_flops,
)
from llmlab.simulator.training.pieces import Get, Setting, of_plan, piece
from llmlab.simulator.training.pipeline_time import (
    BOTH_WAYS,
    FOLDED,
    MOST_FORMS,
    PAIRED,
    Stages,
    StageTime,
    crossings,
    replayed_seconds,
    wait_forms,
)
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


@piece("tp", "cp", "ep", "microbatch", "sequence", "sequence_parallel", "recompute", "precision", "tensor", "tensor_depth")
def layer_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """One layer of one microbatch with its collectives.

    Seconds forward, backward to inputs, backward to weights, computed again, and in tensor-, context- and expert-parallel
    collectives that nothing hides.
    """
    model, habits = setting.model, setting.habits
    cost, sums = layer_cost(model, setting.device.name, plan, habits), _sums(model)
    forward_host, backward_host = cost.forward_kernels * habits.launch_s, cost.backward_kernels * habits.launch_s
    if plan.tp > 1:
        forward_host += sums * habits.collective_launch_s
        backward_host += sums * habits.collective_launch_s
    once, back = tensor_seconds(setting, plan)
    loses = habits.slowed_by(setting.device.generation) * habits.tp_overlap  # of what runs beside computing
    beside_once, beside_back = loses * once, loses * back
    once, back = once * (1.0 - habits.tp_overlap), back * (1.0 - habits.tp_overlap)
    device_backward = cost.backward_input_s + cost.backward_weight_s
    forward = max(0.0, joined(cost.forward_s + beside_once + once, forward_host) - once)
    backward = max(0.0, joined(device_backward + beside_back + back, backward_host) - back)
    weight_part = cost.backward_weight_s / device_backward if device_backward else 0.0
    recompute = again = 0.0
    if plan.recompute == "full":
        recompute, again = forward, once
    elif plan.recompute == "selective" and not habits.fused_attention:
        recompute = cost.attention_s
    communication = (once + back + again, _context(setting, plan, cost), _experts(setting, plan))
    return forward, backward * (1 - weight_part), backward * weight_part, recompute, *communication


def _sums(model: ModelDescription) -> float:
    """Tensor-parallel sums per layer and direction."""
    return 1.0 if model.config.parallel_block else 2.0


def tensor_seconds(setting: Setting, plan: ParallelPlan) -> tuple[float, float]:
    """Collectives of one layer's tensor parallelism, forward and backward, hidden or not."""
    model, network = setting.model, setting.network
    if plan.tp == 1:
        return 0.0, 0.0
    if plan.tensor != "1d":
        return _grid_seconds(setting, plan)
    tokens = plan.microbatch * plan.sequence / plan.cp
    one = _sums(model) * network.all_reduce_s(tokens * model.config.hidden_size * width_bytes(plan.precision), plan.tp)
    return one, one


def _grid_seconds(setting: Setting, plan: ParallelPlan) -> tuple[float, float]:
    """The same on grids and cubes, from what every matrix product sends (`grid_traffic`), and the sums of two norms."""
    network, side = setting.network, plan.tensor_side
    tokens, width = float(plan.microbatch * plan.sequence), width_bytes(plan.precision)
    spread = plan.tensor_depth * (side if plan.tensor == "3d" else 1)
    norm = network.all_reduce_s(8.0 * tokens / (side * spread), side)  # mean and variance of rows that ranks share
    seconds = [2.0 * norm, 2.0 * norm]
    for item in setting.model.operators(1):
        if isinstance(item, Gemm) and item.part != "head":
            count = item.count / setting.model.layers
            for way, moved in enumerate(grid_traffic(plan, tokens, float(item.k), float(item.n))):
                seconds[way] += count * sum(
                    network.reduce_scatter_s(elements * width, ranks, stride) for elements, ranks, stride in moved
                )
    return seconds[0], seconds[1]


Moves = list[tuple[float, int, int]]


def grid_traffic(plan: ParallelPlan, rows: float, inner: float, outer: float) -> tuple[Moves, Moves]:
    """What a rank's groups move for x[rows, inner] w[inner, outer], forward and backward: (elements, ranks, stride).

    Each is a gather or a reduce-scatter of so many elements in all, of which a rank sends the part (ranks - 1) / ranks. A grid
    broadcasts or reduces a block per step, the blocks of a line in all (arXiv:2104.05343; 2105.14500 sums dw over the depth);
    a cube gathers both factors and scatters products (arXiv:2105.14450).

    >>> forward, _ = grid_traffic(ParallelPlan(tp=4, tensor="2d"), 8.0, 6.0, 4.0)
    >>> forward, sum(4 * e * (n - 1) / n for e, n, _ in forward) == (2 - 1) * (8 * 6 + 6 * 4)
    ([(24.0, 2, 1), (12.0, 2, 2)], True)
    """
    q, d = plan.tensor_side, plan.tensor_depth
    if plan.tensor == "3d":
        x, w, out = (size / q**2 for size in (rows * inner, inner * outer, rows * outer))
        forward = [(x, q, q), (w, q, q * q), (out, q, 1)]
        return forward, [(x, q, q), (x, q, q), (w, q, q * q), (w, q, q * q), (out, q, 1)]
    x, w = rows * inner / (d * q), inner * outer / q
    forward = [(x, q, 1), (w, q, q)]
    summed = [(inner * outer / q**2, d, q * q)] * 2 if d > 1 else []  # an all-reduce is a scatter and a gather
    return forward, forward * 2 + summed


def _context(setting: Setting, plan: ParallelPlan, cost: PassCost) -> float:
    """Ring attention: keys and values go round while scores are computed (arXiv:2310.01889)."""
    if plan.cp == 1:
        return 0.0
    tokens = plan.microbatch * plan.sequence / plan.cp
    block = 2.0 * tokens * setting.model.config.key_value_width / plan.tp * width_bytes(plan.precision)
    passes = (plan.cp - 1) * setting.network.send_s(block, plan.tp)
    return max(0.0, passes - cost.attention_s) + max(0.0, 2.0 * passes - 2.5 * cost.attention_s)


def _experts(setting: Setting, plan: ParallelPlan) -> float:
    """Tokens to their experts and back, forward and backward; once more where the forward pass is done again."""
    if plan.ep == 1:
        return 0.0
    model, habits, c = setting.model, setting.habits, setting.model.config
    tokens = plan.microbatch * plan.sequence / plan.cp * habits.capacity_factor
    sent = tokens * c.num_experts_per_tok * c.hidden_size * width_bytes(plan.precision) / plan.tp
    copies = setting.network.copies_beyond_node(c.num_experts_per_tok, plan.ep) if habits.once_per_node else 1.0
    one = all_to_all_seconds(setting.network, habits, sent, plan.ep, copies)  # neighbours, each with its part of the tokens
    shown = 1.0 - habits.expert_overlap * (1.0 - habits.slowed_by(setting.device.generation))
    expert = sum(c.sparse_layers) / model.layers * 4.0 * shown * one
    return 1.5 * expert if plan.recompute == "full" else expert


def all_to_all_seconds(network: Network, habits: Framework, size: float, ranks: int, beyond: float = 1.0) -> float:
    """An exchange of `size` bytes per rank among neighbours: flat, or inside nodes first so that fewer messages leave them.

    With g ranks of a group per node and m nodes: flat sends n - g messages per rank to other nodes, in two levels m - 1, for
    which the links inside carry m times as much (arXiv:2203.14685, section 3.2).
    """
    inside = min(ranks, network.node_devices)
    if ranks <= inside:
        return network.all_to_all_s(size, ranks)
    if not habits.hierarchical_all_to_all:
        return network.all_to_all_s(size, ranks, beyond=beyond) + (ranks - inside) * habits.message_s
    nodes = ranks // inside
    across = network.all_to_all_s(size, nodes, inside)  # the same places of all nodes
    return network.all_to_all_s(size, inside) + across + (nodes - 1) * habits.message_s


@piece("tp", "cp", "ep", "microbatch", "sequence", "sequence_parallel", "precision", "tensor", "tensor_depth")
def ends_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Embedding, then output matrix with loss, of one microbatch: seconds forward, backward to inputs, backward to weights."""
    found: list[float] = []
    for end in ends_cost(setting.model, setting.device.name, plan, setting.habits):
        both = end.backward_input_s + end.backward_weight_s
        whole = joined(both, end.backward_kernels * setting.habits.launch_s)
        found.append(joined(end.forward_s, end.forward_kernels * setting.habits.launch_s))
        found.append(whole * (end.backward_input_s / both if both else 1.0))
        found.append(whole * (end.backward_weight_s / both if both else 0.0))
    return tuple(found)


@piece("pp", "schedule")
def ranks_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Pipeline ranks in groups of equals: how many, layers, embeddings and output matrices on each."""
    return tuple(value for group in rank_groups(setting.model, plan) for value in group)


GROUPS = 4


def kinds_of_ranks(model: ModelDescription, plan: ParallelPlan) -> list[tuple[float, float, float]]:
    """Layers, embeddings and output matrices of every pipeline rank.

    Where two copies of the model run in opposite directions, a rank sees half of the microbatches in each of its stages.
    """
    layers = plan.layers_of_stages(model.layers)
    last = 0 if plan.schedule in FOLDED else plan.pp - 1
    ranks = [(float(count), float(stage == 0), float(stage == last)) for stage, count in enumerate(layers)]
    if plan.schedule in BOTH_WAYS:
        mirrored = zip(ranks, reversed(ranks))
        ranks = [((a + x) / 2, (b + y) / 2, (c + z) / 2) for (a, b, c), (x, y, z) in mirrored]
    return ranks


def rank_groups(model: ModelDescription, plan: ParallelPlan) -> list[tuple[float, float, float, float]]:
    """(ranks, layers, embeddings, output matrices) of equal ranks, in order of their first, filled up with empty groups."""
    ranks = kinds_of_ranks(model, plan)
    groups = [(float(ranks.count(kind)), *kind) for kind in dict.fromkeys(ranks)]
    assert len(groups) <= GROUPS
    return groups + [(0.0, 0.0, 0.0, 0.0)] * (GROUPS - len(groups))


@piece("schedule", "pp", "microbatches", "virtual_stages")
def pipeline_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Hand-overs on the longest path, chunks per rank, whether pairs hide exchanges, updates per step, and the wait forms."""
    sizes = plan.schedule, plan.pp, plan.microbatches, plan.virtual_stages
    forms = [value for form in wait_forms(*sizes) for value in form]
    chunks = float(plan.chunks) if plan.pp > 1 else 0.0
    updates = float(plan.microbatches) if plan.schedule == "pipedream" else 1.0
    paired = float(plan.schedule in PAIRED)
    return crossings(*sizes), chunks, paired, updates, *forms, *[0.0] * (3 * MOST_FORMS - len(forms))


@piece("dp", "tp", "pp", "cp", "microbatch", "sequence", "sequence_parallel", "precision", "tensor")
def hand_over_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Seconds to hand one microbatch to the next pipeline rank."""
    if plan.pp == 1:
        return (0.0,)
    part = plan.tp if plan.sequence_parallel or plan.tensor != "1d" else 1
    width = width_bytes(plan.precision)
    size = plan.microbatch * plan.sequence / plan.cp * setting.model.config.hidden_size * width / part
    return (setting.network.send_s(size, plan.tp * plan.cp * plan.dp),)


@piece("dp", "tp", "cp", "zero_stage", "shard_over", "precision", "tensor_depth", "offload_weights")
def sharded_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Under ZeRO-3: seconds to gather one layer's weights, to scatter its gradients, and of both for a vocabulary's matrix.

    The fourth is the part of its speed that computing loses beside collectives.
    """
    over = plan.shard_over or plan.dp
    loses = setting.habits.slowed_by(setting.device.generation)
    if plan.zero_stage < 3 or (over == 1 and not plan.offload_weights):
        return 0.0, 0.0, 0.0, loses
    model, habits, item = setting.model, setting.habits, width_bytes(plan.precision)
    stride, c = plan.tp * plan.cp, model.config

    def moved(weights: float) -> tuple[float, float]:
        gather = setting.network.reduce_scatter_s(weights * item, over, stride)
        scatter = setting.network.reduce_scatter_s(weights * habits.reduce_bytes, over, stride)
        if plan.offload_weights:  # each rank's part comes from host memory, and its gradient goes there
            gather += weights / over * item / setting.device.host_link_bytes_per_s
            scatter += weights / over * habits.reduce_bytes / setting.device.host_link_bytes_per_s
        return gather, scatter

    gather, scatter = moved(sum(layer_weights(model)) / plan.tp * plan.tensor_depth)
    return gather, scatter, sum(moved(c.vocab_size * c.hidden_size / plan.tp * plan.tensor_depth)), loses


@piece("dp", "tp", "pp", "cp", "ep", "zero_stage", "shard_over", "schedule", "tensor_depth")
def data_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Seconds of summing gradients and gathering new weights once: what can hide behind the drain, what is left to show.

    The third is what ZeRO-2 adds per further microbatch: it keeps no whole gradients, so each microbatch's are scattered.
    """
    model, habits, network = setting.model, setting.habits, setting.network
    copies = 2 if plan.schedule in BOTH_WAYS else 1
    stride = plan.tp * (plan.cp if plan.zero_stage == 3 else 1)
    ranks = plan.dp * (1 if plan.zero_stage == 3 else plan.cp) * copies
    over = plan.shard_over or ranks
    if plan.zero_stage == 3:
        if over == ranks:
            return 0.0, 0.0, 0.0
        held = sum(stage_weights(model, plan, 0)) / over
        across = network.all_reduce_s(held * habits.reduce_bytes, ranks // over, stride * over)
        return 0.0, (1.0 - habits.dp_overlap) * across, 0.0
    seconds = each = 0.0
    for stage in (0, plan.pp - 1):
        dense, experts = stage_weights(model, plan, stage)
        if plan.zero_stage:
            one = network.reduce_scatter_s(dense * habits.reduce_bytes, over, stride)
            each = max(each, one) if plan.zero_stage == 2 else 0.0
            one += network.reduce_scatter_s(2.0 * dense, over, stride)
            one += network.all_reduce_s(dense * habits.reduce_bytes / over, ranks // over, stride * over)
        else:
            one = network.all_reduce_s(dense * habits.reduce_bytes, ranks, stride)
        if experts:
            groups = max(1, ranks * plan.tp // plan.ep) if plan.ep > 1 else ranks
            one += network.all_reduce_s(experts * habits.reduce_bytes, groups, plan.ep if plan.ep > 1 else stride)
        if plan.pp > 1 and model.config.tie_word_embeddings and plan.schedule not in FOLDED + BOTH_WAYS:
            table = model.config.vocab_size * model.config.hidden_size / plan.tp
            one += network.all_reduce_s(table * habits.reduce_bytes, 2, plan.tp * plan.cp * plan.dp)
        seconds = max(seconds, one)
    return seconds, 0.0, each


@piece(*SHARING, "pp", "optimizer", "offload")
def update_piece(setting: Setting, plan: ParallelPlan) -> tuple[float, ...]:
    """Ranks that share an update of dense weights, and of experts; seconds per weight; seconds of Muon's products."""
    model, device = setting.model, setting.device
    over, expert_over = sharding_ranks(plan) if plan.zero_stage else (1, 1)
    moved = (16.0 + 2.0 * optimizer_bytes(model, plan.optimizer)) * OPTIMIZER_PASSES
    products = 0.0
    if plan.optimizer == "muon":
        layers = plan.layers_of_stages(model.layers)[0]
        rate = device.peak_flops_per_s("bfloat16") * setting.habits.efficiency(device.generation)
        products = layers * orthogonalization_flops(model) / (plan.tp * over) / rate
    if plan.offload:
        per_weight = moved / HOST_OPTIMIZER_BYTES_PER_S + 4.0 / device.host_link_bytes_per_s
    else:
        per_weight = moved / device.hbm_bytes_per_s
    return float(over), float(expert_over), per_weight, products


def update_seconds(get: Get) -> Any:
    """Seconds of one update of the weights of the first rank: states moved through memory, and Muon's products."""
    over, expert_over, per_weight, products = get(update_piece)
    dense, experts, *_ = get(weights_piece)
    return products + per_weight * (dense / over + experts / expert_over)


@dataclass(frozen=True)
class Running:
    """Seconds of a step's pipeline, for one plan or for arrays of them.

    Attributes:
        stages: time of one microbatch on every group of equal ranks.
        hand_over: of one microbatch between neighbouring ranks.
    """

    stages: Stages
    hand_over: Any


def running(get: Get, habits: Framework, xp: Any) -> Running:
    """What every group of ranks does with one microbatch."""
    forward, towards_input, towards_weight, recompute, tensor, context, expert = _shown_layer(get, xp)
    communication = tensor + context + expert
    gather, scatter, table, loses = get(sharded_piece)
    chunks = get(pipeline_piece)[1]
    handed = chunks * habits.handover_s
    ahead = forward + communication / 3
    behind = towards_input + recompute + communication * 2 / 3
    hidden = habits.dp_overlap  # a layer's weights are gathered while the one before it computes; what is longer shows
    shown = xp.maximum(gather - hidden * ahead, (1 - hidden) * gather) + xp.maximum(
        gather + scatter - hidden * (behind + towards_weight), (1 - hidden) * (gather + scatter)
    )
    shown = shown + loses * (2 * gather + scatter - shown)  # what is hidden slows what it hides behind
    embedding, head = (get(ends_piece)[number : number + 3] for number in (0, 3))
    groups = get(ranks_piece)
    counts, forwards, inputs, weights, shardings = [], [], [], [], []
    for number in range(GROUPS):
        count, layers, embeddings, heads = groups[4 * number : 4 * number + 4]
        sharded = layers * shown + gather + scatter + xp.maximum(embeddings, heads) * table
        counts.append(count)
        forwards.append(layers * ahead + embeddings * embedding[0] + heads * head[0] + handed)
        inputs.append(layers * behind + embeddings * embedding[1] + heads * head[1] + sharded + handed)
        weights.append(layers * towards_weight + embeddings * embedding[2] + heads * head[2])
        shardings.append(sharded)
    return Running(Stages(counts, forwards, inputs, weights, shardings), get(hand_over_piece)[0])


def _shown_layer(get: Get, xp: Any) -> tuple[Any, ...]:
    """A layer, where pairs of a forward and a backward hide exchanges between experts behind what they compute."""
    forward, towards_input, towards_weight, recompute, tensor, context, expert = get(layer_piece)
    computed = forward + towards_input + towards_weight + recompute
    expert = xp.where(get(pipeline_piece)[2] > 0, xp.maximum(0.0, expert - computed), expert)
    return forward, towards_input, towards_weight, recompute, tensor, context, expert


def step_parts(
    get: Get, microbatches: Any, pp: Any, habits: Framework, xp: Any, pipeline_s: float | None = None
) -> tuple[Any, ...]:
    """The nine parts of `StepBreakdown`, for one plan or for arrays of them; `pipeline_s` replaces the closed form."""
    piped = running(get, habits, xp)
    crossed, chunks, _, updates, *flat = get(pipeline_piece)
    stages, m = piped.stages, microbatches
    totals, groups = stages.totals_s(), get(ranks_piece)
    columns = totals, groups[1::4], stages.sharded_s, stages.backward_input_s, stages.backward_weight_s
    slowest, layers, sharded, behind, weight = (stages.of_slowest(values, xp) for values in columns)
    busy = m * slowest
    if pipeline_s is None:
        forms = list(zip(flat[0::3], flat[1::3], flat[2::3]))
        pipeline_s = busy + stages.waited_s(forms, xp) + crossed * piped.hand_over
    *_, recompute, tensor, context, expert = _shown_layer(get, xp)
    count = layers * m
    hides, shows, each = get(data_piece)
    summed = hides * updates
    drain = slowest * xp.minimum(pp * updates, m)
    summed = summed - (1.0 - get(sharded_piece)[3]) * xp.minimum(habits.dp_overlap * summed, drain)
    backward = behind - sharded + weight
    summed = summed + (m - 1) * xp.maximum((1.0 - habits.dp_overlap) * each, each - habits.dp_overlap * backward)
    data_sharded = m * sharded
    handed = 2.0 * m * chunks * habits.handover_s
    parts = (count * recompute, count * tensor, count * context, count * expert)
    inside = parts[0] + parts[1] + parts[2] + parts[3]
    return (
        busy - inside - data_sharded - handed,
        *parts,
        pipeline_s - busy + handed,
        summed + shows * updates + data_sharded,
        update_seconds(get) * updates,
        habits.iteration_s,
    )


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
    if isinstance(device, str):
        device = load_device_sheet(device)
    plan.check(model)
    check_precision(device, plan.precision)
    habits = habits or framework(plan.framework)
    memory = check_memory(model, plan, device, habits=habits) if fit_memory else fullest_rank(model, plan, habits)[1]
    setting = Setting(model, device, habits, network or network_of(device, habits))
    get = of_plan(setting, plan)
    pipeline_s = None
    if replayed and plan.pp > 1:
        stages, hand_over = stages_of(setting, plan, get)
        virtual = plan.virtual_stages
        pipeline_s = replayed_seconds(plan.schedule, stages, plan.microbatches, virtual_stages=virtual, transfer_s=hand_over)
    breakdown = StepBreakdown(*step_parts(get, plan.microbatches, plan.pp, habits, FLOATS, pipeline_s))
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
        *stages_of(setting, plan, get),
    )


def stages_of(setting: Setting, plan: ParallelPlan, get: Get | None = None) -> tuple[tuple[StageTime, ...], float]:
    """Time of one microbatch on every pipeline rank, and of its hand-over to the next."""
    piped = running(get or of_plan(setting, plan), setting.habits, FLOATS)
    one = piped.stages
    times = [StageTime(*three) for three in zip(one.forward_s, one.backward_input_s, one.backward_weight_s)]
    kinds = [group[1:] for group in rank_groups(setting.model, plan)]
    return tuple(times[kinds.index(kind)] for kind in kinds_of_ranks(setting.model, plan)), float(piped.hand_over)


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
