"""A real trainer: a small decoder, some steps on real text, 1 to 4 processes of this machine, under any plan that fits.

A plan is the simulator's own `ParallelPlan`: data parallelism with ZeRO 0 to 3, tensor and sequence parallelism, pipelines
under every schedule of `reference/parallel`, context parallelism (keys and values gathered), experts dealt to data-parallel
ranks, and combinations. Weights at the start are a function of seed and architecture, the order of the text of seed and step:
a plan changes neither. So losses and gradients are those of one process, to the last bit where sums are taken in the same order
(`order_of_sums`, `is_exact`), else within rounding (`training_check.py`). PipeDream is the exception: its stages compute with
weights of some updates ago, so it is held against its own definition (`train_alone` computes that too).

Units: seconds, bytes, nanoseconds of the machine's monotonic clock. Nothing is overlapped but sends between pipeline stages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from llmlab.harness.runtime.pipeline_executor import Done, Held, Part, Pipeline
from llmlab.harness.runtime.trainer_model import Groups, Layers, Tape, check_model, cut_of, names_of_part, unit_of
from llmlab.harness.runtime.trainer_shards import CountedPeers, Meter
from llmlab.harness.runtime.training_data import microbatches, read_text
from llmlab.kernels.parallel import _world
from llmlab.reference.errors import InputError
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import random_weights
from llmlab.reference.parallel._orders import SCHEDULES, make_schedule
from llmlab.reference.parallel._schedule import Schedule
from llmlab.reference.parallel.mesh import MEGATRON_ORDER, Mesh, expert_mesh
from llmlab.simulator.training.plan import ParallelPlan

DTYPES = ("float32", "float64")
OPTIMIZERS = ("adam", "sgd-momentum", "sgd")
RATE = 1e-3

Order = int | list[Any]
"""A microbatch, or orders whose results are added up from left to right."""


@dataclass(frozen=True)
class RankRun:
    """What one rank reports.

    Attributes:
        place: where the rank is along each axis of the mesh.
        losses: (step, microbatch of the whole step) -> this rank's part of the mean loss of that microbatch.
        gradients, weights: of the last step by name, this rank's parts; the weights after its update.
        actions: per step, as they ran.
        step_ns: per step, when it began and when the last weight was updated.
        parts_s: per step, seconds of the pipeline's actions and waits, of summing gradients, of the update.
        traffic: (axis, collective) -> calls, bytes given to it, bytes sent and seconds, over all steps; ("pp", "send") are
            messages between stages, ("pp", "copies") gradients of weights that several stages hold.
        memory_bytes: weights, gradients, optimizer, and activations where those were counted.
    """

    place: Mapping[str, int]
    losses: Mapping[tuple[int, int], float]
    gradients: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    actions: Sequence[Sequence[Done]]
    step_ns: Sequence[tuple[int, int]]
    parts_s: Sequence[Mapping[str, float]]
    traffic: Mapping[tuple[str, str], Mapping[str, float]]
    memory_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        losses: [step, microbatch], mean over the tokens of a microbatch.
        gradients, weights: whole, by name: of the last step, and after it.
        ranks: what each rank reported.
        schedule: of every pipeline.
    """

    plan: ParallelPlan
    losses: np.ndarray
    gradients: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    ranks: Sequence[RankRun]
    schedule: Schedule

    @property
    def step_s(self) -> list[float]:
        """Seconds of each step: from the first rank's start to the last one's end."""
        spans = zip(*(rank.step_ns for rank in self.ranks))
        return [(max(end for _, end in span) - min(start for start, _ in span)) / 1e9 for span in spans]

    def timeline(self, step: int = -1) -> Any:
        """When the first pipeline did its actions, as the simulator's `Timeline`: it draws and writes traces of either."""
        from llmlab.simulator.training.replay import Timeline

        own = [rank for rank in self.ranks if all(at == 0 for axis, at in rank.place.items() if axis != "pp")]
        done = [rank.actions[step] for rank in sorted(own, key=lambda rank: rank.place["pp"])]
        began = min(actions[0].start_ns for actions in done)
        return Timeline(
            self.schedule,
            [[(action,) for action in actions] for actions in self.schedule.actions],
            [np.array([one.start_ns - began for one in actions]) for actions in done],
            [np.array([one.end_ns - began for one in actions]) for actions in done],
        )


def schedule_of(plan: ParallelPlan) -> Schedule:
    """The table of actions of a plan; names may be spelled with dashes, as the simulator does.

    Raises:
        InputError: no such schedule, or sizes it does not take.
    """
    name = plan.schedule.replace("-", "_")
    if name not in SCHEDULES:
        raise InputError("plan", "schedule", plan.schedule, f"not one of {', '.join(SCHEDULES)}")
    try:
        return make_schedule(name, plan.pp, plan.microbatches, plan.virtual_stages)
    except ValueError as error:
        raise InputError("plan", "schedule", plan.schedule, str(error)) from None


def check_plan(config: ModelConfig, plan: ParallelPlan) -> None:
    """Refuse what cannot be run, with the first reason.

    Raises:
        InputError: an architecture that is not trained here, a degree below 1, too many ranks, sizes that do not divide, more
            stages than layers, an unknown name, or what is not combined here.
    """
    check_model(config)

    def refuse(field: str, why: str) -> None:
        raise InputError("plan", field, getattr(plan, field), why)

    for field in ("dp", "tp", "pp", "cp", "ep", "virtual_stages", "microbatch", "global_batch", "sequence"):
        value = getattr(plan, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            refuse(field, "must be a whole number of at least 1")
    for field, known in (
        ("precision", DTYPES),
        ("optimizer", OPTIMIZERS),
        ("zero_stage", (0, 1, 2, 3)),
        ("recompute", ("none",)),
    ):
        if getattr(plan, field) not in known:
            refuse(field, f"not one of {', '.join(map(str, known))} here")
    for field, plain in (("offload", False), ("offload_weights", False), ("shard_over", 0), ("tensor", "1d")):
        if getattr(plan, field) != plain:
            refuse(field, f"only {plain} is run here")
    if plan.gpus > _world.MAX_RANKS:
        named = f"dp {plan.dp} x tp {plan.tp} x pp {plan.pp} x cp {plan.cp}"
        raise InputError("plan", "ranks", plan.gpus, f"{named}: at most {_world.MAX_RANKS} processes run here")
    if plan.global_batch % (plan.dp * plan.microbatch):
        refuse("global_batch", f"must be a multiple of dp x microbatch = {plan.dp} x {plan.microbatch}")
    depth = schedule_of(plan).depth
    if config.num_hidden_layers % depth:
        of = f"{depth} stages" if depth <= config.num_hidden_layers else f"{depth} stages, more than there are"
        refuse("pp", f"{config.num_hidden_layers} layers of {config.name} do not divide into {of}")
    whole = {
        "query heads": config.num_attention_heads,
        "key/value heads": config.num_key_value_heads,
        "vocabulary": config.vocab_size,
        "feed-forward width": config.moe_intermediate_size if config.is_moe else config.intermediate_size,
    }
    for what, size in whole.items():
        if size % plan.tp:
            refuse("tp", f"must divide the {what} of {config.name}, {size}")
    if plan.sequence % plan.cp:
        refuse("cp", f"must divide the sequence of {plan.sequence} tokens")
    if plan.sequence_parallel and (plan.microbatch * plan.sequence // plan.cp) % plan.tp:
        refuse("tp", f"must divide the {plan.microbatch * plan.sequence // plan.cp} rows of a microbatch to split them")
    if plan.ep > 1 and not config.is_moe:
        refuse("ep", f"{config.name} has no experts")
    if plan.ep > 1 and config.num_experts % plan.ep:
        refuse("ep", f"must divide {config.num_experts} experts")
    if (plan.dp * plan.cp) % plan.ep:
        refuse("ep", f"must divide the dp x cp = {plan.dp} x {plan.cp} ranks experts are dealt to")
    if config.learned_positions and config.learned_positions < plan.sequence:
        refuse("sequence", f"{config.name} has {config.learned_positions} positions")
    if not schedule_of(plan).flush and (
        plan.dp > 1 or plan.cp > 1 or plan.tp > 1 or plan.zero_stage or config.tie_word_embeddings
    ):
        refuse("schedule", "updates within a step: combined with nothing else here, nor with a tied output matrix")


def train(
    config: ModelConfig,
    plan: ParallelPlan,
    *,
    steps: int = 1,
    seed: int = 0,
    rate: float = RATE,
    count_activations: bool = False,
    keep: bool = True,
) -> Trained:
    """Train for some steps under a plan, one process per rank; gather losses, gradients, weights, times and bytes.

    Args:
        config: what is trained, from random weights.
        plan: how.
        steps: how many.
        seed: of weights and of the order of the text.
        rate: learning rate.
        count_activations: count bytes of activations too, which takes some time in every forward.
        keep: gather gradients and weights at the end.

    Raises:
        InputError: the plan cannot be run here, or a seed or number of steps that is none.
        RuntimeError: a rank failed.
    """
    _check_run(config, plan, steps, seed)
    settings = {
        "config": config,
        "plan": plan,
        "steps": steps,
        "seed": seed,
        "rate": rate,
        "count_activations": count_activations,
        "keep": keep,
    }
    return collected(config, plan, _world.run(train_rank, [settings] * plan.gpus))


def collected(config: ModelConfig, plan: ParallelPlan, ranks: Sequence[RankRun]) -> Trained:
    """Put together what ranks report."""
    schedule = schedule_of(plan)
    steps = len(ranks[0].step_ns)
    losses = np.zeros((steps, plan.dp * plan.microbatches))
    for rank in ranks:
        if rank.place["tp"] == 0:
            for key, loss in rank.losses.items():
                losses[key] += loss
    gradients = joined(config, plan, ranks, "gradients")
    return Trained(plan, losses, gradients, joined(config, plan, ranks, "weights"), ranks, schedule)


def joined(config: ModelConfig, plan: ParallelPlan, ranks: Sequence[RankRun], what: str) -> dict[str, np.ndarray]:
    """Whole arrays by name, from the parts of ranks.

    Raises:
        RuntimeError: ranks that hold the same part do not hold the same numbers.
    """
    parts: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for rank in ranks:
        for name, array in getattr(rank, what).items():
            expert = rank.place["ep"] if cut_of(name).expert else 0
            place = (rank.place["tp"] if cut_of(name).axis is not None else 0, expert)
            known = parts.setdefault(name, {}).setdefault(place, array)
            if not np.array_equal(known, array, equal_nan=True):
                raise RuntimeError(f"{what} of {name}: ranks that hold the same part disagree")
    return {name: cut_of(name).join(parts[name], plan.tp, plan.ep) for name in config.weight_shapes() if name in parts}


def _check_run(config: ModelConfig, plan: ParallelPlan, steps: int, seed: int) -> None:
    check_plan(config, plan)
    for field, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise InputError("train", field, value, f"must be a whole number of at least {least}")
    if len(read_text()[1]) > config.vocab_size:
        raise InputError(config.name, "vocab_size", config.vocab_size, f"the text has {len(read_text()[1])} different bytes")


def first_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Weights before the first step: a function of architecture and seed."""
    return random_weights(config, np.random.default_rng([seed, 0]), std=config.hidden_size**-0.5)


def build_part(
    config: ModelConfig, plan: ParallelPlan, number: int, depth: int, whole: Mapping[str, np.ndarray], groups: Groups
) -> Part:
    """Part `number` of `depth` of the model, as this rank holds it."""
    each = config.num_hidden_layers // depth
    layers = range(number * each, (number + 1) * each)
    own = {name: whole[name] for name in names_of_part(config, layers)}
    made = Layers(config, layers, own, groups, getattr(torch, plan.precision), plan.sequence)
    return Part.of(made, plan.zero_stage, plan.optimizer)


def bucket_names(config: ModelConfig, depth: int) -> list[list[str]]:
    """Names of the buckets of each part, whoever holds it."""
    each = config.num_hidden_layers // depth
    parts = (names_of_part(config, range(number * each, (number + 1) * each)) for number in range(depth))
    return [list(dict.fromkeys(unit_of(name) + " experts" * cut_of(name).expert for name in names)) for names in parts]


def train_rank(
    config: ModelConfig, plan: ParallelPlan, steps: int, seed: int, rate: float, count_activations: bool, keep: bool
) -> RankRun:
    """What one rank does; it runs inside a process group of as many ranks as the plan has."""
    rank, meter = dist.get_rank(), Meter()
    mesh = Mesh({"tp": plan.tp, "cp": plan.cp, "dp": plan.dp, "pp": plan.pp}, MEGATRON_ORDER)
    experts = expert_mesh(mesh, plan.ep, plan.tp)
    place = {**mesh.coordinates(rank), "ep": experts.coordinates(rank)["ep"]}
    groups, made = _groups(plan, mesh, experts, rank, meter)
    schedule = schedule_of(plan)
    whole = first_weights(config, seed)
    own = [stage for stage, at in enumerate(schedule.rank_of) if at == place["pp"]]
    parts = {stage: build_part(config, plan, schedule.part_of(stage), schedule.depth, whole, groups) for stage in own}
    rows = plan.microbatch * plan.sequence // plan.cp // (plan.tp if plan.sequence_parallel else 1)
    ranks = mesh.group_of(rank, "pp")
    shape, names = (rows, config.hidden_size), bucket_names(config, schedule.depth)
    pipeline = Pipeline(schedule, parts, ranks=ranks, rank=rank, shape=shape, names_of=names)
    pipeline.held = Held() if count_activations else None
    buckets = [bucket for part in parts.values() for bucket in part.buckets.values()]

    losses: dict[tuple[int, int], float] = {}
    actions, spans, seconds = [], [], []
    tokens = plan.microbatch * plan.sequence
    first = place["dp"] * plan.microbatches
    for step in range(steps):
        ids_MBT, target_MBT = _read(config, plan, seed, step, first, place["cp"])
        for bucket in buckets:
            bucket.forget()
        if dist.get_world_size() > 1:
            dist.barrier()
        marks = [time.perf_counter_ns()]
        scale = 1 / tokens / (plan.dp * plan.microbatches if schedule.flush else 1)
        found = pipeline.run(ids_MBT, target_MBT, scale, rate)
        marks.append(time.perf_counter_ns())
        if schedule.flush:
            pipeline.sum_copies()
            for bucket in buckets:
                bucket.reduce()
        marks.append(time.perf_counter_ns())
        if schedule.flush:
            for bucket in buckets:
                bucket.update(rate)
        marks.append(time.perf_counter_ns())
        losses |= {(step, first + microbatch): loss / tokens for microbatch, loss in found.items()}
        actions.append(pipeline.done)
        pipeline.done = []
        spans.append((marks[0], marks[-1]))
        seconds.append(
            {name: (end - start) / 1e9 for name, start, end in zip(("pipeline", "reduce", "update"), marks, marks[1:])}
        )
    traffic = _traffic(meter, pipeline)  # before anything is gathered for the report
    gradients = _gathered(parts, "whole_gradients") if keep and schedule.flush else {}
    weights = _gathered(parts, "whole_values") if keep else {}
    held = {"weights": 0, "gradients": 0, "optimizer": 0}
    for bucket in buckets:
        for name, size in bucket.held_bytes.items():
            held[name] += size
    if pipeline.held:
        held["activations"] = pipeline.held.peak_bytes
    for group in made:
        dist.destroy_process_group(group)
    return RankRun(place, losses, gradients, weights, actions, spans, seconds, traffic, held)


def _groups(
    plan: ParallelPlan, mesh: Mesh, experts: Mesh, rank: int, meter: Meter
) -> tuple[Groups, list[dist.ProcessGroup | None]]:
    """This rank's groups, and those to close at the end. Every rank makes every group, in the same order."""
    made: list[dist.ProcessGroup | None] = []

    def peers(axis: str, lines: list[list[int]]) -> CountedPeers:
        own = None
        for line in lines:
            if len(line) > 1:
                group = dist.new_group(line)
                if rank in line:
                    own = group
                    made.append(group)
        return CountedPeers(axis, meter, own)

    groups = Groups(
        tp=peers("tp", mesh.groups("tp")),
        cp=peers("cp", mesh.groups("cp")),
        ep=peers("ep", experts.groups("ep")),
        data=peers("dp", mesh.groups("cp", "dp")),
        expert_data=peers("expert dp", experts.groups("dp")),
        split_rows=plan.sequence_parallel and plan.tp > 1,
    )
    return groups, made


def _read(
    config: ModelConfig, plan: ParallelPlan, seed: int, step: int, first: int, cp: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's tokens of one step: its microbatches, and of their sequences its stretch."""
    both = microbatches(
        seed=seed,
        step=step,
        num_microbatches=plan.dp * plan.microbatches,
        microbatch=plan.microbatch,
        sequence=plan.sequence,
        vocab_size=config.vocab_size,
    )
    T = plan.sequence // plan.cp
    ids, target = (torch.from_numpy(one[first : first + plan.microbatches, :, cp * T : (cp + 1) * T].copy()) for one in both)
    return ids, target


def _gathered(parts: Mapping[int, Part], what: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for part in parts.values():
        for bucket in part.buckets.values():
            found |= {weight.name: one.numpy() for weight, one in zip(bucket.weights, getattr(bucket, what)())}
    return found


def _traffic(meter: Meter, pipeline: Pipeline) -> dict[tuple[str, str], dict[str, float]]:
    traffic: dict[tuple[str, str], dict[str, float]] = {
        key: {
            "calls": meter.calls[key],
            "payload_bytes": meter.payload_bytes[key],
            "sent_bytes": meter.sent_bytes[key],
            "seconds": meter.seconds[key],
        }
        for key in meter.calls
    }
    for what, calls, size in (
        ("send", pipeline.mail.messages, pipeline.mail.sent_bytes),
        ("copies", pipeline.copy_messages, pipeline.copy_bytes),
    ):
        if calls:
            traffic["pp", what] = {"calls": calls, "payload_bytes": size, "sent_bytes": size, "seconds": 0.0}
    return traffic


def order_of_sums(plan: ParallelPlan) -> Order | None:
    """In which order a plan adds up the gradients of its microbatches; None where stages do not agree on one.

    Microbatches are those of the whole step, numbered data-parallel rank by rank.

    >>> order_of_sums(ParallelPlan(dp=2, global_batch=4)), order_of_sums(ParallelPlan(dp=2, global_batch=4, zero_stage=2))
    ([[0, 1], [2, 3]], [[0, 2], [1, 3]])
    >>> order_of_sums(ParallelPlan(pp=2, global_batch=4, schedule="chimera"))
    [[0, 1], [2, 3]]
    """
    schedule, count = schedule_of(plan), plan.microbatches
    chains: dict[int, list[int]] = {}
    for stage in range(schedule.num_stages):
        own = [a.microbatch for a in schedule.actions[schedule.rank_of[stage]] if a.stage == stage and a.kind in "BW"]
        if chains.setdefault(stage // schedule.depth, own) != own:
            return None
    orders = list(chains.values())
    if plan.zero_stage >= 2 and plan.dp > 1:
        summed: list[Order] = [[[rank * count + m for rank in range(plan.dp)] for m in order] for order in orders]
        return summed if len(summed) > 1 else summed[0]
    ranks: list[Order] = []
    for rank in range(plan.dp):
        own_orders: list[Order] = [[rank * count + m for m in order] for order in orders]
        ranks.append(own_orders if len(own_orders) > 1 else own_orders[0])
    return ranks if plan.dp > 1 else ranks[0]


def is_exact(config: ModelConfig, plan: ParallelPlan) -> bool:
    """Whether one process that adds in `order_of_sums` must get the same bits.

    Tensor and context parallelism cut sums inside an operator, experts on other ranks see rows of several microbatches in one
    product, the two uses of a tied matrix are not summed microbatch by microbatch, and a ring over more than two ranks starts
    at a different rank for each piece.
    """
    cut = plan.tp > 1 or plan.cp > 1 or plan.ep > 1
    return not cut and not config.tie_word_embeddings and plan.dp <= 2 and order_of_sums(plan) is not None


def train_alone(
    config: ModelConfig,
    plan: ParallelPlan,
    *,
    steps: int = 1,
    seed: int = 0,
    rate: float = RATE,
    order: Order | None = None,
) -> Trained:
    """The same steps on one process without any schedule: the whole model, one microbatch after the other.

    Gradients are added in `order`, by default the order of the microbatches. For a plan whose schedule updates without a flush
    this is PipeDream's own definition: microbatch t computes stage s with the weights of p - 1 - s updates ago, then every
    stage is updated.

    Raises:
        InputError: the plan cannot be run here.
    """
    _check_run(config, plan, steps, seed)
    settings = {"config": config, "plan": plan, "steps": steps, "seed": seed, "rate": rate, "order": order}
    (only,) = _world.run(alone_rank, [settings])
    one = replace(plan, dp=1, tp=1, pp=1, cp=1, ep=1, zero_stage=0, virtual_stages=1, schedule="gpipe", sequence_parallel=False)
    return collected(config, one, [only])


def alone_rank(config: ModelConfig, plan: ParallelPlan, steps: int, seed: int, rate: float, order: Order | None) -> RankRun:
    """What that one process does."""
    schedule = schedule_of(plan)
    stale = not schedule.flush
    depth = schedule.depth if stale else 1
    one = replace(plan, dp=1, tp=1, pp=1, cp=1, ep=1, zero_stage=0, sequence_parallel=False)
    alone = CountedPeers("", Meter())
    groups, whole = Groups(alone, alone, alone, alone, alone), first_weights(config, seed)
    parts = [build_part(config, one, number, depth, whole, groups) for number in range(depth)]
    buckets = [bucket for part in parts for bucket in part.buckets.values()]
    count, tokens = plan.dp * plan.microbatches, plan.microbatch * plan.sequence
    losses: dict[tuple[int, int], float] = {}
    spans = []

    def gradients_of(microbatch: int, step: int, scale: float) -> list[torch.Tensor]:
        for bucket in buckets:
            bucket.forget()
        tape = Tape()
        out = ids_MBT[microbatch]
        for part in parts:
            out = part.layers.forward(out, tape)
        loss = parts[-1].layers.loss(out, target_MBT[microbatch], tape)
        losses[step, microbatch] = loss.item() / tokens
        (loss * scale).backward()
        for bucket in buckets:
            bucket.open()
        tape.play()
        return [bucket.gathered().clone() for bucket in buckets]

    def summed(order: Order, step: int) -> list[torch.Tensor]:
        if isinstance(order, int):
            return gradients_of(order, step, 1 / tokens / count)
        total = summed(order[0], step)
        for one_more in order[1:]:
            total = [a.add_(b) for a, b in zip(total, summed(one_more, step))]
        return total

    def update(found: Sequence[torch.Tensor]) -> None:
        for bucket, grad in zip(buckets, found):
            bucket.open()
            bucket.grad.copy_(grad)
            bucket.update(rate)

    def stale_step(step: int) -> None:
        """Keep every version of each part; a pipeline's next step begins with the newest, as all are through by then."""
        versions = [[[b.flat for b in part.buckets.values()] for part in parts]]
        for microbatch in range(count):
            for number, part in enumerate(parts):
                old = versions[max(0, microbatch - (depth - 1 - number))][number]
                for bucket, flat in zip(part.buckets.values(), old):
                    bucket.use(flat)
            found = gradients_of(microbatch, step, 1 / tokens)
            for part, newest in zip(parts, versions[-1]):
                for bucket, flat in zip(part.buckets.values(), newest):
                    bucket.use(flat.clone())
            update(found)
            versions.append([[b.flat for b in part.buckets.values()] for part in parts])

    for step in range(steps):
        ids_MBT, target_MBT = _read(config, replace(one, global_batch=plan.global_batch), seed, step, 0, 0)
        started = time.perf_counter_ns()
        if stale:
            stale_step(step)
        else:
            update(summed(list(range(count)) if order is None else order, step))
        spans.append((started, time.perf_counter_ns()))
    place = dict.fromkeys(("tp", "cp", "ep", "dp", "pp"), 0)
    own = dict(enumerate(parts))
    gradients = {} if stale else _gathered(own, "whole_gradients")
    return RankRun(place, losses, gradients, _gathered(own, "whole_values"), [], spans, [], {}, {})
