"""A plan in the words of Megatron-LM (core 0.16), torchtitan (0.3) and DeepSpeed (0.19): launch flags and a configuration.

What a framework has no switch for is said instead of left out: its line then begins with "cannot".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from llmlab.simulator.training.plan import ParallelPlan

TITAN_SCHEDULES: Mapping[str, str] = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zb-v": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
MEGATRON_SCHEDULES = ("1f1b", "interleaved")


def launch_flags(plan: ParallelPlan) -> dict[str, str]:
    """The plan for each framework.

    >>> launch_flags(ParallelPlan(dp=2, global_batch=8, zero_stage=1))["deepspeed"]
    '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 4, \
"zero_optimization": {"stage": 1}, "bf16": {"enabled": true}}'
    """
    return {name: flags(plan) for name, flags in FLAGS.items()}


def _cannot(reasons: Mapping[str, bool]) -> str:
    found = [reason for reason, there in reasons.items() if there]
    return f"cannot: {'; '.join(found)}" if found else ""


def _megatron(plan: ParallelPlan) -> str:
    refused = _cannot(
        {
            f"has no pipeline schedule {plan.schedule}": plan.pp > 1 and plan.schedule not in MEGATRON_SCHEDULES,
            f"has no {plan.tensor} tensor parallelism": plan.tensor != "1d",
            "does not fetch weights from the host": plan.offload_weights,
            f"has no optimizer {plan.optimizer}": plan.optimizer in ("adam-8bit", "adafactor"),
        }
    )
    if refused:
        return refused
    flags = [
        f"--tensor-model-parallel-size {plan.tp}",
        f"--pipeline-model-parallel-size {plan.pp}",
        f"--context-parallel-size {plan.cp}",
        f"--micro-batch-size {plan.microbatch}",
        f"--global-batch-size {plan.global_batch}",
        f"--seq-length {plan.sequence}",
    ]
    if plan.ep > 1:
        flags.append(f"--expert-model-parallel-size {plan.ep} --expert-tensor-parallel-size 1")
    if plan.virtual_stages > 1:
        flags.append(f"--num-virtual-stages-per-pipeline-rank {plan.virtual_stages}")
    if plan.sequence_parallel:
        flags.append("--sequence-parallel")
    flags += _megatron_sharding(plan)
    flags += {
        "full": ["--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"],
        "selective": ["--recompute-granularity selective"],
    }.get(plan.recompute, [])
    flags += {
        "bfloat16": ["--bf16"],
        "float16": ["--fp16"],
        "fp8": ["--bf16 --fp8-format hybrid"],
        "nvfp4": ["--bf16 --fp4-format e2m1"],
    }.get(plan.precision, [])
    name = {"sgd-momentum": "sgd"}.get(plan.optimizer, plan.optimizer)
    flags += [f"--optimizer {name}"] if name != "adam" else []
    if plan.offload:
        flags.append("--optimizer-cpu-offload --optimizer-offload-fraction 1.0 --use-precision-aware-optimizer")
    return " ".join(flags)


def _megatron_sharding(plan: ParallelPlan) -> list[str]:
    instances = plan.dp // plan.shard_over if plan.shard_over else 1
    shared = [f"--num-distributed-optimizer-instances {instances}"] if instances > 1 else []
    overlap = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
    if plan.zero_stage < 2:
        return [overlap, *shared] if plan.zero_stage else []
    strategy = {2: "optim_grads", 3: "optim_grads_params"}[plan.zero_stage]
    return [
        overlap,
        "--use-megatron-fsdp",
        f"--data-parallel-sharding-strategy {strategy}",
        "--ckpt-format fsdp_dtensor",
        *shared,
    ]


def _torchtitan(plan: ParallelPlan) -> str:
    refused = _cannot(
        {
            f"has no pipeline schedule {plan.schedule}": plan.pp > 1 and plan.schedule not in TITAN_SCHEDULES,
            f"has no {plan.tensor} tensor parallelism": plan.tensor != "1d",
            f"has no optimizer {plan.optimizer}": plan.optimizer not in ("adam", "muon"),
            "does not compute in float16": plan.precision == "float16",
        }
    )
    if refused:
        return refused
    shards = (plan.shard_over or plan.dp) if plan.zero_stage else 1
    flags: dict[str, int | str] = {
        "parallelism.data_parallel_replicate_degree": plan.dp // shards,
        "parallelism.data_parallel_shard_degree": shards,
        "parallelism.tensor_parallel_degree": plan.tp,
        "parallelism.pipeline_parallel_degree": plan.pp,
        "parallelism.context_parallel_degree": plan.cp,
        "training.local_batch_size": plan.microbatch if plan.pp == 1 else plan.global_batch // plan.dp,
        "training.global_batch_size": plan.global_batch,
        "training.seq_len": plan.sequence,
    }
    if plan.ep > 1:
        flags["parallelism.expert_parallel_degree"] = plan.ep
    if plan.zero_stage:  # sharded always means FSDP2: keeping gathered weights is as near to ZeRO-2 as it comes
        flags["parallelism.fsdp_reshard_after_forward"] = "always" if plan.zero_stage == 3 else "never"
    if plan.pp > 1:
        flags["parallelism.pipeline_parallel_schedule"] = TITAN_SCHEDULES[plan.schedule]
        flags["parallelism.pipeline_parallel_microbatch_size"] = plan.microbatch
    words = [f"--{name} {value}" for name, value in flags.items()]
    words += ["--training.enable_cpu_offload"] if plan.offload or plan.offload_weights else []
    words.append(f"activation-checkpoint:{plan.recompute}")
    config = {"fp8": "Float8LinearConverter", "nvfp4": "NVFP4LinearConverter"}.get(plan.precision)
    words += [f"(in the config: {config})"] if config else []
    words += ["(in the config: optimizer DistMuon)"] if plan.optimizer == "muon" else []
    return " ".join(words)


def _deepspeed(plan: ParallelPlan) -> str:
    refused = _cannot(
        {
            f"has no pipeline schedule {plan.schedule}": plan.pp > 1 and plan.schedule != "1f1b",
            f"does not combine ZeRO-{plan.zero_stage} with a pipeline": plan.pp > 1 and plan.zero_stage > 1,
            f"has no {plan.tensor} tensor parallelism": plan.tensor != "1d",
            "shards over all data-parallel ranks": plan.shard_over > 0,
            f"does not compute in {plan.precision}": plan.precision in ("fp8", "nvfp4"),
        }
    )
    if refused:
        return refused
    zero: dict[str, Any] = {"stage": plan.zero_stage}
    if plan.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if plan.offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.microbatch,
        "gradient_accumulation_steps": plan.microbatches,
        "zero_optimization": zero,
    }
    if plan.precision != "float32":
        config["fp16" if plan.precision == "float16" else "bf16"] = {"enabled": True}
    if plan.pp > 1:
        config["pipeline"] = {"stages": plan.pp}
    if plan.tp > 1:
        config["tensor_parallel"] = {"autotp_size": plan.tp}
    if plan.cp > 1:
        config["sequence_parallel_size"] = plan.cp
    return json.dumps(config)


FLAGS: Mapping[str, Callable[[ParallelPlan], str]] = {
    "megatron-lm": _megatron,
    "torchtitan": _torchtitan,
    "deepspeed": _deepspeed,
}
