"""The quickest training plan: every plan that can run and fits is priced, and the winner explained.

The space is every divisor of the devices into data, tensor, pipeline, context and expert parallelism, with microbatches,
schedules and their virtual stages, ZeRO stages and the ranks they shard over, recomputation, sequence parallelism and offload.
Nothing is left out by a rule of thumb: a plan is dropped only where it cannot run, where its memory, the same number that
`predict_step` reports, does not fit, or where it is another plan by a second name.

Units: seconds, bytes, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device, load_device_sheet
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.flags import FLAGS, MEGATRON_SCHEDULES
from llmlab.simulator.training.memory import fullest_rank
from llmlab.simulator.training.operators import check_precision
from llmlab.simulator.training.pieces import Setting
from llmlab.simulator.training.pipeline_time import FOLDED
from llmlab.simulator.training.plan import (
    PRECISION_ALIASES,
    SCHEDULES,
    Framework,
    ParallelPlan,
    framework,
    microbatches_refused,
    plan_of,
)
from llmlab.simulator.training.screen import Plans, screen
from llmlab.simulator.training.step import StepPrediction, network_of, predict_step

RECOMPUTE = ("none", "selective", "full")
SEARCHED = tuple(name for name in SCHEDULES if name not in ("naive", "pipedream", "zb-1p", "zb-2p"))
"""Schedules tried unless told otherwise: all that train on fresh weights and have an order of their own. zb-1p and zb-2p are
zb-h1 and zb-h2 with an order made for measured times."""
MOST_MICROBATCH = 64
TOKENS_PER_CONTEXT_RANK = 4096
"""Sequences are cut no shorter than this."""


@dataclass(frozen=True)
class Search:
    """What was looked at and what came out, quickest first.

    Attributes:
        considered: plans that can run.
        too_big: of them, those that do not fit.
        best: the quickest.
        per_schedule: the quickest of each schedule.
        tempting: the quickest small change of the winner that would not fit; None where none is quicker.
        launch: per framework, the quickest plan that it can run, with its flags.
    """

    model: str
    device: str
    considered: int
    too_big: int
    best: tuple[StepPrediction, ...]
    per_schedule: tuple[StepPrediction, ...] = ()
    tempting: StepPrediction | None = None
    launch: Mapping[str, tuple[StepPrediction, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, the explanation and launch flags of the winner."""
        return {
            "model": self.model,
            "device": self.device,
            "considered": self.considered,
            "do_not_fit": self.too_big,
            "plans": [step.to_json() for step in self.best],
            "per_schedule": [step.to_json() for step in self.per_schedule],
            "why": explain(self),
            "launch": {
                name: {"plan": describe(step.plan), "iteration_s": step.seconds, "flags": flags}
                for name, (step, flags) in self.launch.items()
            },
        }


def divisors(number: int, most: int | None = None) -> list[int]:
    """Divisors up to `most`, ascending.

    >>> divisors(12, 6)
    [1, 2, 3, 4, 6]
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    found = sorted({*small, *(number // d for d in small)})
    return [d for d in found if most is None or d <= most]


@dataclass(frozen=True)
class Choices:
    """What a search may choose from beside the sizes."""

    schedules: Sequence[str] = SEARCHED
    precisions: Sequence[str] = ("bfloat16",)
    optimizer: str = "adam"
    offload: Sequence[str] = ("none", "optimizer")
    sequence_parallel: Sequence[bool] = (True, False)


OFFLOADS: Mapping[str, tuple[bool, bool]] = {"none": (False, False), "optimizer": (True, False), "all": (True, True)}
"""What lives in host memory: (optimizer state, weights)."""

SIZES = ("dp", "tp", "pp", "cp", "ep", "microbatch", "tensor_depth")
Sizes = tuple[int, int, int, int, int, int, int]


def grids_of(model: ModelDescription, gpus: int, global_batch: int, sequence: int, name: str) -> Iterator[Sizes]:
    """The same where the framework shares matrices on grids or cubes, which may span nodes."""
    for tp, depth in [(ranks, depth) for ranks in divisors(gpus) for depth in divisors(ranks)]:
        for pp in divisors(gpus // tp, model.layers):
            dp = gpus // (tp * pp)
            for microbatch in divisors(global_batch // dp, MOST_MICROBATCH) if global_batch % dp == 0 else ():
                sizes = {"dp": dp, "tp": tp, "pp": pp, "microbatch": microbatch, "tensor_depth": depth}
                plan = plan_of(name, **sizes, global_batch=global_batch, sequence=sequence, schedule="gpipe", zero_stage=0)
                try:
                    plan.check(model)
                except InputError:
                    continue
                yield dp, tp, pp, 1, 1, microbatch, depth


def sizes_of(model: ModelDescription, device: Device, gpus: int, global_batch: int, sequence: int) -> Iterator[Sizes]:
    """Every (dp, tp, pp, cp, ep, microbatch, tensor_depth) that divides; tensor parallelism stays within a node."""
    c = model.config
    for tp in divisors(gpus, device.devices_per_node):
        if c.num_attention_heads % tp or (not c.latent and c.num_key_value_heads % tp and tp % c.num_key_value_heads):
            continue
        for cp in divisors(gpus // tp, max(1, sequence // TOKENS_PER_CONTEXT_RANK)):
            if sequence % (cp * tp):
                continue
            for pp in divisors(gpus // (tp * cp), model.layers):
                dp = gpus // (tp * cp * pp)
                if global_batch % dp:
                    continue
                experts = [e for e in divisors(c.num_experts) if (dp * tp * cp) % e == 0] if c.is_moe else [1]
                sizes = [m for m in divisors(global_batch // dp) if m & (m - 1) == 0 and m <= MOST_MICROBATCH]
                for ep, microbatch in product(experts, sizes):
                    yield dp, tp, pp, cp, ep, microbatch, 1


def shapes_of(schedules: Sequence[str], layers: int, pp: int, microbatches: int) -> list[tuple[str, int]]:
    """Schedules that take these sizes, with their virtual stages.

    >>> shapes_of(("1f1b", "interleaved", "dualpipe"), 24, 4, 8)
    [('1f1b', 1), ('dualpipe', 1), ('interleaved', 2), ('interleaved', 3), ('interleaved', 6)]
    """
    if pp == 1:
        return [("1f1b", 1)]
    found = [
        (name, 1)
        for name in schedules
        if name != "interleaved"
        and not microbatches_refused(name, pp, microbatches)
        and (name not in FOLDED or _even(layers, 2 * pp))
    ]
    if "interleaved" in schedules and microbatches % pp == 0:
        found += [("interleaved", v) for v in range(2, (layers + 2) // pp + 1) if _even(layers, pp * v)]
    return found


def _even(layers: int, chunks: int) -> bool:
    """Whether so many chunks divide the layers, or the layers with embedding and output matrix as a layer each."""
    return layers % chunks == 0 or (layers + 2) % chunks == 0


def shardings_of(dp: int, cp: int, offload: Sequence[str]) -> list[tuple[int, int, bool, bool]]:
    """(ZeRO stage, ranks it shards over, optimizer offloaded, weights offloaded): all that differ from each other."""
    found = []
    for name, stage in product(offload, range(4)):
        state, weights = OFFLOADS[name]
        if (stage and dp * cp == 1 and not weights) or (weights and stage < 3):
            continue
        spans = [0, *(d for d in divisors(dp)[1:] if d < dp)] if stage else [0]
        found += [(stage, span, state, weights) for span in spans]
    return found


def plan_space(
    model: ModelDescription, device: Device, gpus: int, global_batch: int, sequence: int, habits: Framework, choices: Choices
) -> Plans:
    """Every plan of these devices that can run, as codes into the values of each field."""
    recompute = [
        r for r in RECOMPUTE if r != "selective" or not habits.fused_attention or habits.selective_by_operator
    ]  # where scores are never written, selective recomputation is none
    coders: dict[str, dict[Any, int]] = {}
    columns: dict[str, list[np.ndarray]] = {}
    lines = habits.tensor == "1d"
    found = sizes_of(model, device, gpus, global_batch, sequence)
    for sizes in found if lines else grids_of(model, gpus, global_batch, sequence, habits.name):
        dp, tp, pp, cp, _, microbatch, _ = sizes
        shapes = shapes_of(choices.schedules, model.layers, pp, global_batch // (dp * microbatch))
        axes = (
            (("schedule", "virtual_stages"), shapes),
            (("zero_stage", "shard_over", "offload", "offload_weights"), shardings_of(dp, cp, choices.offload)),
            (("recompute",), [(r,) for r in recompute]),
            (("sequence_parallel",), [(s,) for s in (choices.sequence_parallel if tp > 1 and lines else (False,))]),
            (("precision",), [(p,) for p in choices.precisions]),
        )
        count = math.prod(len(options) for _, options in axes)
        for name, value in zip(SIZES, sizes):
            code = coders.setdefault(name, {}).setdefault(value, len(coders[name]))
            columns.setdefault(name, []).append(np.full(count, code))
        inner = count
        for fields_of, options in axes:
            inner //= max(1, len(options))
            for place, name in enumerate(fields_of):
                coder = coders.setdefault(name, {})
                codes = np.array([coder.setdefault(option[place], len(coder)) for option in options], dtype=np.int64)
                columns.setdefault(name, []).append(np.tile(np.repeat(codes, inner), count // max(1, inner * len(options))))
    fixed = plan_of(habits.name, global_batch=global_batch, sequence=sequence, optimizer=choices.optimizer)
    values = {item.name: (getattr(fixed, item.name),) for item in fields(fixed)}
    values |= {name: tuple(coder) for name, coder in coders.items()}
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    total = len(joined["dp"]) if joined else 0
    return Plans(total, values, {name: column for name, column in joined.items() if len(values[name]) > 1})


def candidates(
    model: ModelDescription,
    device: Device,
    gpus: int,
    global_batch: int,
    sequence: int,
    *,
    name: str = "megatron",
    choices: Choices | None = None,
) -> Iterator[ParallelPlan]:
    """Every plan of the space, one by one."""
    plans = plan_space(model, device, gpus, global_batch, sequence, framework(name), choices or Choices())
    for number in range(plans.count):
        yield plans.plan(number)


def search(
    model: ModelDescription,
    device: Device | str,
    gpus: int,
    global_batch: int,
    sequence: int,
    *,
    name: str = "megatron",
    choices: Choices | None = None,
    keep: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Search:
    """The `keep` quickest plans that fit.

    Raises:
        InputError: no sizes divide, or nothing fits; the line names the plan that came closest.
    """
    if isinstance(device, str):
        device = load_device_sheet(device)
    choices = _checked(choices or Choices(), device)
    for given, value in (("gpus", gpus), ("global_batch", global_batch), ("sequence", sequence), ("keep", keep)):
        if value < 1:
            raise InputError("plan train", given, value, "must be at least 1")
    habits = framework(name)
    plans = plan_space(model, device, gpus, global_batch, sequence, habits, choices)
    if not plans.count:
        raise InputError("plan train", "gpus", gpus, f"no parallel degrees divide it together with global batch {global_batch}")
    setting = Setting(model, device, habits, network_of(device, habits))
    found = screen(setting, plans, fit_bytes=device.hbm_bytes, progress=progress)
    fitting = np.flatnonzero(np.isfinite(found.seconds))
    if not len(fitting):
        _refuse(model, device, plans, found.total_bytes, gpus)
    order = fitting[np.argsort(found.seconds[fitting], kind="stable")]
    best = tuple(predict_step(model, plans.plan(number), device, fit_memory=False) for number in order[:keep])
    schedules = plans.codes["schedule"][order] if "schedule" in plans.codes else np.zeros(len(order), dtype=np.int64)
    firsts = sorted(np.unique(schedules, return_index=True)[1])
    per_schedule = tuple(predict_step(model, plans.plan(order[at]), device, fit_memory=False) for at in firsts)
    tempting = _tempting(model, device, best[0], habits)
    runnable = {
        framework_name: (predict_step(model, plan, device, fit_memory=False), flags)
        for framework_name, (plan, flags) in _runnable(plans, order).items()
    }
    too_big = plans.count - len(fitting)
    return Search(model.name, device.name, plans.count, too_big, best, per_schedule, tempting, runnable)


LOOKED_THROUGH = 20000
"""Plans, quickest first, among which one is sought that a framework has switches for."""


def _runnable(plans: Plans, order: np.ndarray) -> dict[str, tuple[ParallelPlan, str]]:
    """The first plan in this order that each framework can run, and its flags."""
    found: dict[str, tuple[ParallelPlan, str]] = {}
    for number in order[:LOOKED_THROUGH]:
        plan = plans.plan(number)
        for name, flags in FLAGS.items():
            if name not in found and not (text := flags(plan)).startswith("cannot"):
                found[name] = plan, text
        if len(found) == len(FLAGS):
            break
    return found


def _checked(choices: Choices, device: Device) -> Choices:
    for name, given, known in (
        ("schedule", choices.schedules, SCHEDULES),
        ("offload", choices.offload, tuple(OFFLOADS)),
    ):
        for value in given:
            if value not in known:
                raise InputError("plan train", name, value, f"not one of {', '.join(known)}")
    precisions = tuple(PRECISION_ALIASES.get(one, one) for one in choices.precisions)
    for precision in precisions:
        check_precision(device, precision, "plan train")
    return replace(choices, precisions=precisions)


def _refuse(model: ModelDescription, device: Device, plans: Plans, needed: np.ndarray, gpus: int) -> None:
    least = int(np.argmin(needed))
    raise InputError(
        "plan train",
        "gpus",
        gpus,
        f"{model.name} does not fit: the leanest of {plans.count} plans ({describe(plans.plan(least))}) needs "
        f"{needed[least] / 1e9:.0f} GB of {device.hbm_bytes / 1e9:.0f} GB per device",
    )


def _tempting(model: ModelDescription, device: Device, winner: StepPrediction, habits: Framework) -> StepPrediction | None:
    """The quickest plan that differs from the winner in what saves memory, and does not fit."""
    plan = winner.plan
    changes: list[dict[str, Any]] = [{"recompute": "none"}, {"offload": False}, {"microbatch": 2 * plan.microbatch}]
    if plan.tp > 1:
        changes.append({"tp": plan.tp // 2, "dp": 2 * plan.dp, "sequence_parallel": plan.sequence_parallel and plan.tp > 2})
    if plan.pp % 2 == 0:
        changes.append({"pp": plan.pp // 2, "dp": 2 * plan.dp})
    changes += [{"zero_stage": stage, "shard_over": 0, "offload_weights": False} for stage in range(plan.zero_stage)]
    found = []
    for change in changes:
        other = replace(plan, **change)
        try:
            other.check(model)
        except InputError:
            continue
        if fullest_rank(model, other, habits)[1].total_bytes > device.hbm_bytes:
            step = predict_step(model, other, device, fit_memory=False)
            if step.seconds < winner.seconds:
                found.append(step)
    return min(found, key=lambda step: step.seconds, default=None)


def describe(plan: ParallelPlan) -> str:
    """A plan in one line.

    >>> describe(ParallelPlan(dp=2, tp=8, pp=4, recompute="full"))
    'dp 2, tp 8, pp 4, no sequence parallelism, microbatch 1, recompute full, 1f1b'
    """
    parts = [f"dp {plan.dp}", f"tp {plan.tp}", f"pp {plan.pp}"]
    parts += [f"{name} {value}" for name, value in (("cp", plan.cp), ("ep", plan.ep), ("v", plan.virtual_stages)) if value > 1]
    if plan.zero_stage:
        parts.append(f"zero {plan.zero_stage}" + (f" over {plan.shard_over}" if plan.shard_over else ""))
    if plan.tensor != "1d":
        parts.append(f"{plan.tensor} tensors")
    if plan.offload or plan.offload_weights:
        parts.append("optimizer and weights on the host" if plan.offload_weights else "optimizer on the host")
    parts += ["no sequence parallelism"] if plan.tp > 1 and plan.tensor == "1d" and not plan.sequence_parallel else []
    parts += [plan.precision] if plan.precision != "bfloat16" else []
    return ", ".join([*parts, f"microbatch {plan.microbatch}", f"recompute {plan.recompute}", plan.schedule])


BINDS = {
    "compute": "arithmetic",
    "recompute": "memory, paid for by computing again",
    "tensor": "tensor-parallel communication",
    "context": "context-parallel communication",
    "expert": "the exchange between experts",
    "bubble": "the pipeline bubble",
    "data": "data-parallel communication",
    "optimizer": "the optimizer's update",
    "constant": "what a step costs whatever it does",
}


def seconds_of(step: StepPrediction) -> dict[str, float]:
    """The parts of a step by name."""
    return {item.name.removesuffix("_s"): getattr(step.breakdown, item.name) for item in fields(step.breakdown)}


def explain(result: Search) -> list[str]:
    """Sentences: where the winner's time and memory go, what binds it, and what the others cost."""
    first = result.best[0]
    parts = {name: value for name, value in seconds_of(first).items() if value}
    largest = sorted(parts, key=lambda name: -parts[name])
    waste = next((name for name in largest if name != "compute"), "compute")
    memory = {item.name.removesuffix("_bytes"): getattr(first.memory, item.name) / 1e9 for item in fields(first.memory)}
    held = sorted((name for name in memory if memory[name] > 0), key=lambda name: -memory[name])
    lines = [
        f"{describe(first.plan)}: {first.seconds:.3g} s per step, {first.mfu:.1%} of peak",
        "seconds: " + ", ".join(f"{name} {parts[name]:.3g} ({parts[name] / first.seconds:.0%})" for name in largest),
        f"what binds: {BINDS[largest[0]]}; of the rest most is {BINDS[waste]}",
        f"the fullest rank holds {first.memory.total_bytes / 1e9:.1f} GB: "
        + ", ".join(f"{name} {memory[name]:.1f}" for name in held),
    ]
    if result.tempting is not None:
        other = result.tempting
        lines.append(
            f"memory binds too: {describe(other.plan)} would take {other.seconds / first.seconds - 1:+.1%} "
            f"but needs {other.memory.total_bytes / 1e9:.1f} GB"
        )
    lines += [_compared(other, first) for other in result.best[1:]]
    plain = [step for step in result.per_schedule if step.plan.pp == 1 or step.plan.schedule in MEGATRON_SCHEDULES]
    if plain and plain[0].plan.schedule != first.plan.schedule:
        lines.append("with a schedule every framework has: " + _compared(plain[0], first))
    return lines


def _compared(other: StepPrediction, first: StepPrediction) -> str:
    """What another plan costs more than the winner, part by part."""
    mine, theirs = seconds_of(first), seconds_of(other)
    worst = sorted(mine, key=lambda name: mine[name] - theirs[name])[:2]
    differences = ", ".join(
        f"{name} {theirs[name] - mine[name]:+.3g} s" for name in worst if theirs[name] > mine[name] + 1e-4 * first.seconds
    )
    return f"{describe(other.plan)}: {other.seconds / first.seconds - 1:+.2%}" + (
        f", of it {differences}" if differences else ""
    )


def tables(result: Search) -> list[tuple[str, list[dict[str, Any]]]]:
    """The search as titled tables."""
    plans = [
        {
            "plan": describe(step.plan),
            "step_s": step.seconds,
            "tokens_per_s_per_gpu": step.tokens_per_s / step.plan.gpus,
            "mfu": step.mfu,
            "memory_gb": step.memory.total_bytes / 1e9,
        }
        for step in result.best
    ]
    first = result.best[0]
    seconds = [
        {"part": item.name.removesuffix("_s"), "seconds": getattr(first.breakdown, item.name)}
        for item in fields(first.breakdown)
    ]
    memory = [
        {"part": item.name.removesuffix("_bytes"), "GB": getattr(first.memory, item.name) / 1e9}
        for item in fields(first.memory)
    ]
    schedules = [
        {"schedule": step.plan.schedule, "step_s": step.seconds, "plan": describe(step.plan)} for step in result.per_schedule
    ]
    flags = [
        {"for": name, "step_s": step.seconds, "plan": describe(step.plan), "launch with": text}
        for name, (step, text) in result.launch.items()
    ]
    title = f"{result.considered} plans, {result.too_big} do not fit {result.device}"
    why = [{"why": line} for line in explain(result)]
    return [
        (title, plans),
        ("Why", why),
        ("Quickest of each schedule", schedules),
        ("Seconds of the winner", seconds),
        ("Memory of the winner", memory),
        ("Launch", flags),
    ]
