"""The quickest training plan: every plan that can run and fits is priced, and the winner explained.

Units: seconds, bytes, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import Device, load_device_sheet
from llmlab.simulator.model.description import ModelDescription
from llmlab.simulator.training.memory import fullest_rank
from llmlab.simulator.training.plan import ParallelPlan, framework, plan_of
from llmlab.simulator.training.step import StepPrediction, predict_step

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Search:
    """What was looked at and what came out, quickest first."""

    model: str
    device: str
    considered: int
    too_big: int
    best: tuple[StepPrediction, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, the explanation and launch flags of the winner."""
        return {
            "model": self.model,
            "device": self.device,
            "considered": self.considered,
            "do_not_fit": self.too_big,
            "plans": [step.to_json() for step in self.best],
            "why": explain(self.best),
            "launch": launch_flags(self.best[0].plan),
        }


def divisors(number: int, most: int | None = None) -> list[int]:
    """Divisors up to `most`, ascending.

    >>> divisors(12, 6)
    [1, 2, 3, 4, 6]
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    found = sorted({*small, *(number // d for d in small)})
    return [d for d in found if most is None or d <= most]


def candidates(
    model: ModelDescription,
    device: Device,
    gpus: int,
    global_batch: int,
    sequence: int,
    *,
    name: str = "megatron",
    precision: str = "bfloat16",
    schedules: Sequence[str] = ("1f1b", "interleaved"),
) -> Iterator[ParallelPlan]:
    """Every plan of this size whose sizes divide; tensor parallelism stays within a node."""
    c, habits = model.config, framework(name)
    whole = model.layers
    for tp in divisors(gpus, device.devices_per_node):
        if c.num_attention_heads % tp or (not c.latent and c.num_key_value_heads % tp and tp % c.num_key_value_heads):
            continue
        for cp in divisors(gpus // tp, max(1, sequence // 4096)):
            if sequence % (cp * tp):
                continue
            for pp in divisors(gpus // (tp * cp), whole):
                dp = gpus // (tp * cp * pp)
                if global_batch % dp:
                    continue
                experts = [e for e in divisors(c.num_experts) if (dp * tp * cp) % e == 0] if c.is_moe else [1]
                for microbatch in (m for m in divisors(global_batch // dp) if m & (m - 1) == 0 and m <= 64):
                    microbatches = global_batch // (dp * microbatch)
                    shapes = [(kind, 1) for kind in schedules if kind != "interleaved"] if pp > 1 else [("1f1b", 1)]
                    if pp > 1 and "interleaved" in schedules and microbatches % pp == 0:
                        shapes += [("interleaved", v) for v in range(2, whole // pp + 1) if whole % (pp * v) == 0]
                    for ep in experts:
                        for zero in (0, 1, 2, 3) if pp == 1 else (0, 1, 2):
                            if zero and dp * cp == 1:
                                continue
                            for recompute in RECOMPUTE:
                                if recompute == "selective" and habits.fused_attention and not habits.selective_by_operator:
                                    continue
                                for schedule, virtual in shapes:
                                    yield plan_of(
                                        name,
                                        dp=dp,
                                        tp=tp,
                                        pp=pp,
                                        cp=cp,
                                        ep=ep,
                                        virtual_stages=virtual,
                                        sequence_parallel=tp > 1,
                                        zero_stage=zero,
                                        microbatch=microbatch,
                                        global_batch=global_batch,
                                        sequence=sequence,
                                        recompute=recompute,
                                        precision=precision,
                                        schedule=schedule,
                                    )


def search(
    model: ModelDescription,
    device: Device | str,
    gpus: int,
    global_batch: int,
    sequence: int,
    *,
    name: str = "megatron",
    precision: str = "bfloat16",
    schedules: Sequence[str] = ("1f1b", "interleaved"),
    keep: int = 5,
) -> Search:
    """The `keep` quickest plans that fit.

    Raises:
        InputError: no sizes divide, or nothing fits; the line names the plan that came closest.
    """
    if isinstance(device, str):
        device = load_device_sheet(device)
    for field, value in (("gpus", gpus), ("global_batch", global_batch), ("sequence", sequence), ("keep", keep)):
        if value < 1:
            raise InputError("plan train", field, value, "must be at least 1")
    considered = too_big = 0
    leanest: tuple[float, ParallelPlan] | None = None
    found: list[tuple[float, int, ParallelPlan]] = []
    for plan in candidates(model, device, gpus, global_batch, sequence, name=name, precision=precision, schedules=schedules):
        considered += 1
        needed = fullest_rank(model, plan)[1].total_bytes
        if needed > device.hbm_bytes:
            too_big += 1
            if leanest is None or needed < leanest[0]:
                leanest = (needed, plan)
            continue
        step = predict_step(model, plan, device, fit_memory=False)
        found.append((step.seconds, considered, plan))
    if not considered:
        raise InputError("plan train", "gpus", gpus, f"no parallel degrees divide it together with global batch {global_batch}")
    if not found:
        assert leanest is not None
        fit = predict_step(model, leanest[1], device, fit_memory=False).memory.total_bytes
        raise InputError(
            "plan train",
            "gpus",
            gpus,
            f"{model.name} does not fit: the leanest of {considered} plans ({describe(leanest[1])}) needs {fit / 1e9:.0f} GB "
            f"of {device.hbm_bytes / 1e9:.0f} GB per device",
        )
    found.sort(key=lambda one: one[:2])
    best = tuple(predict_step(model, plan, device, fit_memory=False) for _, _, plan in found[:keep])
    return Search(model.name, device.name, considered, too_big, best)


def describe(plan: ParallelPlan) -> str:
    """A plan in one line.

    >>> describe(ParallelPlan(dp=2, tp=8, pp=4, recompute="full"))
    'dp 2, tp 8, pp 4, microbatch 1, recompute full, 1f1b'
    """
    parts = [f"dp {plan.dp}", f"tp {plan.tp}", f"pp {plan.pp}"]
    parts += [f"{name} {value}" for name, value in (("cp", plan.cp), ("ep", plan.ep), ("v", plan.virtual_stages)) if value > 1]
    parts += [f"zero {plan.zero_stage}"] if plan.zero_stage else []
    return ", ".join([*parts, f"microbatch {plan.microbatch}", f"recompute {plan.recompute}", plan.schedule])


def explain(best: Sequence[StepPrediction]) -> list[str]:
    """Sentences: where the winner's time goes, what binds it, and what the runner-up costs."""
    first = best[0]
    parts = {item.name.removesuffix("_s"): getattr(first.breakdown, item.name) for item in fields(first.breakdown)}
    waste = max((name for name in parts if name != "compute"), key=lambda name: parts[name])
    lines = [
        f"{describe(first.plan)}: {first.seconds:.3g} s per step, {first.mfu:.1%} of peak",
        f"{parts['compute'] / first.seconds:.0%} of the step computes; the largest other part is {waste} with "
        f"{parts[waste]:.3g} s ({parts[waste] / first.seconds:.0%})",
        f"the fullest rank holds {first.memory.total_bytes / 1e9:.1f} GB, "
        f"{first.memory.activations_bytes / 1e9:.1f} GB of it activations",
    ]
    for other in best[1:]:
        theirs = {item.name.removesuffix("_s"): getattr(other.breakdown, item.name) for item in fields(other.breakdown)}
        worse = max(parts, key=lambda name: theirs[name] - parts[name])
        lines.append(
            f"{describe(other.plan)}: {other.seconds / first.seconds - 1:+.1%}, most of it {worse} "
            f"({theirs[worse] - parts[worse]:+.3g} s)"
        )
    return lines


def launch_flags(plan: ParallelPlan) -> dict[str, str]:
    """The plan as flags of Megatron-LM and torchtitan and as a DeepSpeed configuration."""
    megatron = [
        f"--tensor-model-parallel-size {plan.tp}",
        f"--pipeline-model-parallel-size {plan.pp}",
        f"--context-parallel-size {plan.cp}",
        f"--micro-batch-size {plan.microbatch}",
        f"--global-batch-size {plan.global_batch}",
        f"--seq-length {plan.sequence}",
    ]
    if plan.ep > 1:
        megatron.append(f"--expert-model-parallel-size {plan.ep}")
    if plan.virtual_stages > 1:
        megatron.append(f"--num-virtual-stages-per-pipeline-rank {plan.virtual_stages}")
    if plan.sequence_parallel:
        megatron.append("--sequence-parallel")
    if plan.zero_stage:
        megatron.append("--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather")
    if plan.recompute != "none":
        megatron.append(
            "--recompute-granularity full --recompute-method uniform" if plan.recompute == "full" else "--recompute-activations"
        )
    megatron.append({"bfloat16": "--bf16", "float16": "--fp16", "fp8": "--bf16 --fp8-format hybrid"}.get(plan.precision, ""))
    shards = plan.dp if plan.zero_stage == 3 else 1
    titan = [
        f"--parallelism.data_parallel_replicate_degree {plan.dp // shards}",
        f"--parallelism.data_parallel_shard_degree {shards}",
        f"--parallelism.tensor_parallel_degree {plan.tp}",
        f"--parallelism.pipeline_parallel_degree {plan.pp}",
        f"--parallelism.context_parallel_degree {plan.cp}",
        f"--training.local_batch_size {plan.global_batch // plan.dp}",
        f"--training.seq_len {plan.sequence}",
        f"--activation_checkpoint.mode {plan.recompute}",
    ]
    if plan.pp > 1:
        name = {"interleaved": "Interleaved1F1B", "gpipe": "GPipe", "zb-h1": "InterleavedZeroBubble"}.get(plan.schedule, "1F1B")
        titan.append(f"--parallelism.pipeline_parallel_schedule {name}")
        titan.append(f"--parallelism.pipeline_parallel_microbatch_size {plan.microbatch}")
    deepspeed = (
        f'{{"train_batch_size": {plan.global_batch}, "train_micro_batch_size_per_gpu": {plan.microbatch}, '
        f'"zero_optimization": {{"stage": {plan.zero_stage}}}, '
        f'"{"fp16" if plan.precision == "float16" else "bf16"}": {{"enabled": true}}}}'
    )
    return {"megatron-lm": " ".join(filter(None, megatron)), "torchtitan": " ".join(titan), "deepspeed": deepspeed}


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
    flags = [{"for": name, "launch with": text} for name, text in launch_flags(first.plan).items()]
    title = f"{result.considered} plans, {result.too_big} do not fit {result.device}"
    why = [{"why": line} for line in explain(result.best)]
    return [
        (title, plans),
        ("Why", why),
        ("Seconds of the winner", seconds),
        ("Memory of the winner", memory),
        ("Launch", flags),
    ]
