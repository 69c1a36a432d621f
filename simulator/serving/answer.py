"""A plan in words: what binds, how to start it, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving.deployment import resolve
from llmlab.simulator.serving.simulate import bound_by
from llmlab.simulator.workload.workload import Workload

if TYPE_CHECKING:
    from llmlab.simulator.serving.plan import Plan, Point


def explain(chosen: Point | None, points: Sequence[Point], rejected: Sequence[Mapping[str, Any]]) -> str:
    """Say what keeps anything cheaper from being enough, from the next smaller option that was simulated."""
    if chosen is None:
        if not points:
            return "; ".join(f"{row['gpu']} TP{row['tensor_parallel']}: {row['reason']}" for row in rejected)
        nearest = min(points, key=lambda point: point.ratio)
        return f"nothing within the limit keeps the objective; nearest is {nearest.label}: {_cause(nearest)}"
    said = []
    smaller = [point for point in points if point.usd_per_hour < chosen.usd_per_hour and not point.kept]
    own = [point for point in smaller if point.group == chosen.group]
    if own or smaller:
        below = min(own or smaller, key=lambda point: (-point.usd_per_hour, point.ratio))
        said.append(f"the next cheaper option, {below.label} at {below.usd_per_hour:.2f} US$/h, fails: {_cause(below)}")
    lower = [row for row in rejected if row["gpu"] == chosen.group[0] and row["tensor_parallel"] < chosen.group[1]]
    if lower:
        said.append(f"TP{lower[-1]['tensor_parallel']} of {lower[-1]['gpu']} is ruled out by {lower[-1]['reason']}")
    if not said:
        said.append("nothing cheaper was possible: one replica of the smallest group is enough")
    steps = ", ".join(
        f"{name} {share:.0%}"
        for name, share in bound_by(resolve(chosen.deployment).cost, chosen.steps).items()
        if share >= 0.005
    )
    said.append(f"busy time of the chosen option is bound by {steps}")
    return "; ".join(said)


def _cause(point: Point) -> str:
    """Which resource makes an option break its objective."""
    summary = point.summary
    resource = next(iter(bound_by(resolve(point.deployment).cost, point.steps)), "compute")
    broken = "; ".join(point.broken) or "the objective"
    queue, ttft = summary["queue_s"]["p99"], summary["ttft_s"]["p99"]
    full = (summary["kv_peak_fraction"] or 0) > 0.97
    if full or summary["preemptions"]:
        return f"{broken}, HBM capacity: the KV cache is full ({summary['preemptions']} preemptions)"
    if queue is not None and ttft and queue > 0.5 * ttft and any(clause.startswith("ttft") for clause in point.broken):
        return f"{broken}, queueing behind {resource} (utilization {summary['utilization']:.0%})"
    return f"{broken}, {resource}"


def launch_command(point: Point, workload: Workload) -> str:
    """The `vllm serve` command of one replica."""
    deployment = point.deployment
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    context = load_model(str(deployment.model)).max_context_tokens
    length = min(context, -(-longest // 1024) * 1024)
    parts = [
        f"vllm serve {deployment.model}",
        f"--tensor-parallel-size {deployment.tensor_parallel}",
        f"--max-num-seqs {deployment.max_num_seqs}",
        f"--max-num-batched-tokens {deployment.max_num_batched_tokens}",
        f"--max-model-len {length}",
        f"--gpu-memory-utilization {deployment.gpu_memory_utilization:g}",
        "--enable-prefix-caching" if deployment.prefix_caching else "--no-enable-prefix-caching",
        f"--block-size {deployment.block_tokens}",
    ]
    quantized = {"fp8": "fp8", "fp8_block": "fp8", "int4": "awq_marlin", "int8": "compressed-tensors"}
    if deployment.weight_dtype in quantized:
        parts.append(f"--quantization {quantized[deployment.weight_dtype]}")
    else:
        parts.append(f"--dtype {deployment.weight_dtype}")
    if deployment.kv_dtype in ("fp8", "float8"):
        parts.append("--kv-cache-dtype fp8")
    return " ".join(parts)


def tables(found: Plan) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of a plan: (title, rows)."""
    names = {
        "gpu": "gpu",
        "tensor_parallel": "TP",
        "replicas": "replicas",
        "max_num_seqs": "batch",
        "max_num_batched_tokens": "chunk",
        "usd_per_hour": "US$/h",
        **{f"{target.metric}_{target.statistic}_s": f"{target.metric}_{target.statistic} s" for target in found.slo.targets},
        "utilization": "busy",
        "kv_peak_fraction": "KV peak",
        "kept": "kept",
        "simulated": "simulated",
        "mark": "",
    }
    rows = [
        {
            name: "-" if row[key] is None else f"{row[key]:.2f}" if key == "usd_per_hour" else row[key]
            for key, name in names.items()
        }
        for row in found.best_rows()
    ]
    title = f"{found.model} on {found.workload}: best of each group, {found.simulations} simulations in {found.wall_s:.0f} s"
    shown = [(title, rows)]
    if found.rejected:
        shown.append(("Ruled out by a bound", [dict(row) for row in found.rejected]))
    return shown
