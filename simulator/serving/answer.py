"""A plan in words: what binds, where the time goes, what more money or load would change, how to start it, and its tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.simulator.model.description import load_model
from llmlab.simulator.serving.deployment import Deployment, resolve
from llmlab.simulator.serving.search import Point, Search, Task, layout
from llmlab.simulator.serving.simulate import SimulationResult, bound_by, simulate
from llmlab.simulator.workload.workload import Workload

if TYPE_CHECKING:
    from llmlab.simulator.serving.plan import Plan

LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Times today's rate, where the load curve is drawn."""

WHOLE_REQUESTS = 30_000
"""Larger workloads are explained on their busiest stretch."""

OVERLOAD = 8.0
"""Runs of the load curve go on until a limit must be missed by this factor."""

MORE_LOAD, TIGHTER = 1.5, 0.8
"""What the sensitivity asks: half as much again, and every limit a fifth shorter."""

PARTS = {
    "gemm": "matrix products",
    "moe": "experts",
    "lm_head": "output matrix",
    "attention_prefill": "attention of prompts",
    "attention_decode": "attention, reading the KV cache",
    "communication": "communication",
    "elementwise": "norms and activations",
    "embedding": "norms and activations",
    "sampling": "sampling",
    "launch": "launching kernels",
    "gaps": "launching kernels",
    "host": "host of the engine",
}


def explain(chosen: Point | None, points: Sequence[Point], rejected: Sequence[Mapping[str, Any]]) -> str:
    """Say what keeps anything cheaper from being enough, from the next smaller option that was simulated."""
    if chosen is None:
        if not points:
            return "; ".join(dict.fromkeys(f"{row['gpu']} {row['layout']}: {row['reason']}" for row in rejected))
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
        said.append(f"{lower[-1]['layout']} of {lower[-1]['gpu']} is ruled out by {lower[-1]['reason']}")
    if not said:
        said.append("no cheaper option is left by the bounds")
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


def time_parts(result: SimulationResult) -> dict[str, list[dict[str, Any]]]:
    """Mean time to first token and mean time per output token, in parts that add up to them.

    Steps are a sample of the run's, weighted by their prompts' tokens for the first token and by their decodes for those
    after it. A decode's step is split into what it would take alone and what the prompts beside it add.
    """
    table, cost = result.requests, result.site.cost
    ttft_s, queue_s, tpot_s = (table[f"{name}_s"] for name in ("ttft", "queue", "tpot"))
    frontend_s = result.site.engine.host_request_s
    prompt: dict[str, float] = defaultdict(float)
    decode: dict[str, float] = defaultdict(float)
    for shape, duration_ns in result.sampled(256):
        new = sum(tokens for tokens, _ in shape.prefill)
        seconds = duration_ns / 1e9
        whole = cost.breakdown(shape)
        scale = seconds / max(1e-12, sum(whole.values()))
        for kind, part in whole.items():
            prompt[PARTS.get(kind, "other")] += new * part * scale
        if shape.decode_requests:
            alone = replace(shape, prefill=(), emitted=shape.decode_requests)
            own_s = 0.0
            for kind, part in cost.breakdown(alone).items():
                decode[PARTS.get(kind, "other")] += shape.decode_requests * part * scale
                own_s += part * scale
            decode["prompts of others in the same step"] += shape.decode_requests * max(0.0, seconds - own_s)
    first = float(np.nanmean(ttft_s)) if np.isfinite(ttft_s).any() else 0.0
    waited = float(np.nanmean(queue_s)) if np.isfinite(queue_s).any() else 0.0
    each = float(np.nanmean(tpot_s)) if np.isfinite(tpot_s).any() else 0.0
    begun = {"front end": min(frontend_s, waited), "waiting": max(0.0, waited - frontend_s)}
    return {
        "ttft": _shares(begun | _filled(prompt, first - waited, "prompt in steps")),
        "tpot": _shares(_filled(decode, each, "decode in steps")),
    }


def _filled(weights: Mapping[str, float], seconds: float, otherwise: str) -> dict[str, float]:
    """Divide seconds by weights."""
    total = sum(weight for weight in weights.values() if weight > 0)
    if not total:
        return {otherwise: seconds}
    shares = sorted(((name, weight) for name, weight in weights.items() if weight > 0), key=lambda pair: -pair[1])
    return {name: seconds * weight / total for name, weight in shares}


def _shares(parts: Mapping[str, float]) -> list[dict[str, Any]]:
    total = sum(parts.values())
    return [
        {"part": name, "seconds": seconds, "share": seconds / total if total else 0.0}
        for name, seconds in parts.items()
        if seconds > 1e-9
    ]


def stress(search: Search, chosen: Point | None, points: Sequence[Point]) -> tuple[float, bool | None, Point | None]:
    """Run the answer with every step as long as the calibration's residuals allow; where it fails, look for one that holds.

    Tried in order of price: every kind that was simulated, at its best sizes, with up to half as many replicas again.
    """
    if chosen is None:
        return 1.0, None, None
    stretch = simulate(chosen.deployment, search.window, seed=search.seed).step_interval()[1]

    def slowly(stage: str, options: Sequence[Deployment]) -> list[Point]:
        tasks = [_task(option, stretch=stretch, only="whole", give_up=1.0) for option in options]
        return [own[-1] for own in search.run(stage, tasks)]

    answer = slowly("slow end of the calibration", [chosen.deployment])[0]
    if answer.kept:
        return stretch, True, chosen
    best: dict[tuple[str, int], Point] = {chosen.group: chosen}
    for point in sorted(points, key=lambda point: (not point.kept, point.ratio, point.order)):
        best.setdefault(point.group, point)
    options = {}
    for point in best.values():
        had = point.deployment.replicas
        for replicas in range(had, min(search.max_gpus * had // point.deployment.devices, had + max(4, had // 2)) + 1):
            option = replace(point.deployment, replicas=replicas)
            price = (option.price_usd_per_hour or 0.0) * option.devices
            if chosen.usd_per_hour <= price <= 2.0 * chosen.usd_per_hour and option != chosen.deployment:
                options[option] = price
    queue = sorted(options, key=lambda option: (options[option], option.tensor_parallel, str(option.device)))
    for start in range(0, min(len(queue), 24), 4):
        held = [point for point in slowly("what holds there", queue[start : start + 4]) if point.kept]
        if held:
            return stretch, False, min(held, key=lambda point: point.order)
    return stretch, False, None


def _task(option: Deployment, **changes: Any) -> Task:
    return Task(option, (option.max_num_seqs or 256,), **changes)


def why(search: Search, chosen: Point, runner_up: Point | None) -> dict[str, Any]:
    """Where the time goes, how latency grows with the load, how much more it carries, what would change the answer."""
    level = "whole" if len(search.workload) <= WHOLE_REQUESTS else "window"
    load = search.workload if level == "whole" else search.window
    result = simulate(chosen.deployment, load, seed=search.seed)
    summary = result.metrics(search.slo)
    rate = load.rate_per_s
    curve = _at_loads(search, "load curve", chosen.deployment, LOADS, level, give_up=OVERLOAD)
    most, resolution, curve = headroom(search, chosen.deployment, curve, level)
    found: dict[str, Any] = {
        "level": level,
        "parts": time_parts(result),
        "bound_by": result.bound_by,
        "rate_per_s": rate,
        "clients": load.clients,
        "curve": [
            {"factor": factor, "rate_per_s": factor * rate, "kept": point.kept, "complete": point.complete, **point.values}
            for factor, point in sorted(curve.items())
        ],
        "headroom": {"factor": most, "rate_per_s": most * rate, "known_within": resolution},
        "goodput_requests_per_s": summary["goodput_requests_per_s"],
        "energy": {
            "joules_per_output_token": summary["joules_per_output_token"],
            "energy_j": summary["energy_j"],
            "mean_power_w": summary["energy_j"] / summary["simulated_s"] if summary["energy_j"] else None,
        },
    }
    found["more"] = _one_more(search, chosen, most, level)
    found["sensitivity"] = [
        _when(search, chosen, f"{MORE_LOAD:g} times the rate", level, factor=MORE_LOAD),
        _when(search, chosen, f"limits {1 - TIGHTER:.0%} shorter", level, tighter=TIGHTER),
    ]
    if runner_up is not None:
        found["runner_up"] = _lost(chosen, runner_up)
    return found


def _at_loads(
    search: Search, stage: str, deployment: Deployment, factors: Sequence[float], level: str, give_up: float = 1.0
) -> dict[float, Point]:
    tasks = [_task(deployment, factor=factor, only=level, give_up=give_up) for factor in factors]
    return {factor: own[-1] for factor, own in zip(factors, search.run(stage, tasks))}


def headroom(
    search: Search, deployment: Deployment, curve: Mapping[float, Point], level: str, rounds: int = 2
) -> tuple[float, float, dict[float, Point]]:
    """The largest known factor on the rate that keeps the objective below the first that does not, how far apart they are, and
    everything tried.

    Each round tries three factors between the two.
    """
    known = dict(curve)
    number = 0
    while True:
        ordered = sorted(known)
        failed = next((factor for factor in ordered if not known[factor].kept), None)
        kept = max((factor for factor in ordered if known[factor].kept and (failed is None or factor < failed)), default=0.0)
        if failed is None:
            return kept, math.inf, known
        if number == rounds:
            return kept, failed - kept, known
        number += 1
        between = [kept + (failed - kept) * part for part in (0.25, 0.5, 0.75)]
        tasks = [_task(deployment, factor=factor, only=level, give_up=1.0) for factor in between]
        known |= {factor: own[-1] for factor, own in zip(between, search.run(f"headroom of {_name(deployment)}", tasks))}


def _name(deployment: Deployment) -> str:
    return f"{deployment.replicas} x {layout(deployment)} {deployment.device}"


def _one_more(search: Search, chosen: Point, most: float, level: str) -> dict[str, Any] | None:
    """What one more replica costs and brings."""
    more = replace(chosen.deployment, replicas=chosen.deployment.replicas + 1)
    if more.devices > search.max_gpus:
        return None
    grown = more.replicas / chosen.deployment.replicas
    factors = sorted({1.0, *(round(most * (1 + (grown - 1) * part), 4) for part in (0.5, 1.0, 1.5) if most)})
    curve = _at_loads(search, "one more replica", more, factors, level)
    then, _, _ = headroom(search, more, curve, level, rounds=1)
    extra = chosen.usd_per_hour / chosen.deployment.replicas
    rate = (search.workload if level == "whole" else search.window).rate_per_s
    return {
        "usd_per_hour": extra,
        "values": dict(curve[1.0].values),
        "headroom_factor": then,
        "requests_per_s_more": (then - most) * rate,
        "requests_per_s_more_per_usd_per_hour": (then - most) * rate / extra,
    }


def _when(search: Search, chosen: Point, what: str, level: str, *, factor: float = 1.0, tighter: float = 1.0) -> dict[str, Any]:
    """Whether the answer holds under a change, and otherwise how many replicas of its kind do."""
    had = chosen.deployment.replicas
    most = min(search.max_gpus * had // chosen.deployment.devices, 2 * had + 2)
    replicas, failed, price = had, had - 1, chosen.usd_per_hour / had
    tried: dict[int, bool] = {}
    step = 1
    while True:
        option = replace(chosen.deployment, replicas=replicas)
        task = _task(option, factor=factor, tighter=tighter, only=level, give_up=1.0)
        tried[replicas] = search.run(what, [task])[0][-1].kept
        if tried[replicas] or replicas == most:
            break
        failed, replicas, step = replicas, min(most, replicas + step), 2 * step
    if not tried[replicas]:
        return {"change": what, "holds": False, "replicas": None, "usd_per_hour": None}
    while replicas - failed > 1:
        middle = (replicas + failed) // 2
        option = replace(chosen.deployment, replicas=middle)
        task = _task(option, factor=factor, tighter=tighter, only=level, give_up=1.0)
        if search.run(what, [task])[0][-1].kept:
            replicas = middle
        else:
            failed = middle
    return {"change": what, "holds": replicas == had, "replicas": replicas, "usd_per_hour": replicas * price}


def _lost(chosen: Point, runner_up: Point) -> str:
    """Why the runner-up is not the answer."""
    more = runner_up.usd_per_hour - chosen.usd_per_hour
    margin = f"its worst clause is at {runner_up.ratio:.0%} of the limit, the answer's at {chosen.ratio:.0%}"
    if more > 1e-9:
        return f"{more:.2f} US$/h ({more / chosen.usd_per_hour:.0%}) dearer; {margin}"
    return f"costs the same; {margin}"


def fronts(found: Plan) -> list[dict[str, Any]]:
    """Per clause of the objective: cost against latency of every option, ready to draw.

    A point's value is that of the whole workload, or, where that run was given up or never made, of the busiest stretch; its
    `level` says which. Whether it keeps the objective is always the last verdict. `hopeless` are those whose every run was
    given up, so that they have no value.
    """
    drawn = []
    valued = {(point.usd_per_hour, point.label) for point in found.points if point.values_level}
    given_up = {(p.usd_per_hour, p.label, str(p.deployment.device)) for p in found.points if not p.values_level}
    hopeless = [
        {"x": price, "label": label, "gpu": gpu} for price, label, gpu in sorted(given_up) if (price, label) not in valued
    ]
    for target in found.slo.targets:
        name = f"{target.metric}_{target.statistic}"
        points: list[dict[str, Any]] = []
        for point in found.points:
            value = point.values[name]
            if value is None or point.same_run or not point.values_level:
                continue
            points.append(
                {
                    "x": point.usd_per_hour,
                    "y": value,
                    "label": point.label,
                    "group": f"{point.deployment.device} TP{point.deployment.tensor_parallel}",
                    "gpu": str(point.deployment.device),
                    "level": "whole workload" if point.values_level == "whole" else "busiest stretch",
                    "keeps": point.kept and point.level == "whole",
                    "chosen": found.chosen is not None and point.deployment == found.chosen.deployment,
                    "runner_up": found.runner_up is not None and point.deployment == found.runner_up.deployment,
                    "front": False,
                }
            )
        for special, mark in ((found.chosen, "chosen"), (found.runner_up, "runner_up")):
            if special is not None and not any(point[mark] for point in points):  # it shares its run with a larger batch
                twin = [
                    point for point in points if point["x"] == special.usd_per_hour and point["label"] == special.label
                    and point["y"] == special.values[name]
                ]  # fmt: skip
                for drawn_point in twin[:1]:
                    drawn_point[mark] = True
        points.sort(key=lambda each: (each["x"], each["y"], each["label"]))
        lowest = math.inf
        for each in points:
            each["front"] = each["y"] < lowest  # nothing is both cheaper and faster
            lowest = min(lowest, each["y"])
        drawn.append(
            {
                "metric": name,
                "title": f"{name} of every option simulated",
                "x": "US dollars per hour",
                "y": f"{name}, seconds",
                "limit": target.seconds,
                "points": points,
                "hopeless": hopeless,
            }
        )
    return drawn


def _vllm_layout(deployment: Deployment) -> list[str]:
    """vLLM multiplies data by tensor parallelism; experts are then dealt to all of a replica's devices."""
    groups = deployment.attention_data_parallel
    parts = [f"--tensor-parallel-size {deployment.tensor_parallel // groups}"]
    if groups > 1:
        parts.append(f"--data-parallel-size {groups}")
    if deployment.expert_parallel > 1:
        parts.append("--enable-expert-parallel")
    if deployment.pipeline_parallel > 1:
        parts.append(f"--pipeline-parallel-size {deployment.pipeline_parallel}")
    return parts


def launch_commands(point: Point, workload: Workload) -> dict[str, str]:
    """How one replica is started under each engine: vLLM, SGLang, TensorRT-LLM."""
    deployment = point.deployment
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    context = load_model(deployment.model).max_context_tokens if isinstance(deployment.model, str) else longest
    length = min(context, -(-longest // 1024) * 1024)
    wide = deployment.weight_dtype not in ("fp8", "fp8_block", "int4", "int8", "fp4")
    quantized = {"fp8": "fp8", "fp8_block": "fp8", "int4": "awq_marlin", "int8": "compressed-tensors", "fp4": "modelopt_fp4"}
    small_cache = deployment.kv_dtype == "fp8"
    groups = deployment.attention_data_parallel  # vLLM's limits are those of one data-parallel rank
    vllm = [
        f"vllm serve {deployment.model}",
        *_vllm_layout(deployment),
        f"--max-num-seqs {-(-(deployment.max_num_seqs or 256) // groups)}",
        f"--max-num-batched-tokens {-(-(deployment.max_num_batched_tokens or 8192) // groups)}",
        f"--max-model-len {length}",
        f"--gpu-memory-utilization {deployment.gpu_memory_utilization:g}",
        "--enable-prefix-caching" if deployment.prefix_caching else "--no-enable-prefix-caching",
        f"--block-size {deployment.block_tokens}",
        f"--dtype {deployment.weight_dtype}" if wide else f"--quantization {quantized[deployment.weight_dtype]}",
        *(["--kv-cache-dtype fp8"] if small_cache else []),
    ]
    names = {"fp8": "fp8", "fp8_block": "fp8", "int4": "awq_marlin", "int8": "w8a8_int8", "fp4": "modelopt_fp4"}
    sglang = [
        f"python -m sglang.launch_server --model-path {deployment.model}",
        f"--tp {deployment.tensor_parallel}",
        *([f"--ep {deployment.expert_parallel}"] if deployment.expert_parallel > 1 else []),
        *(
            [f"--dp {deployment.attention_data_parallel} --enable-dp-attention"]
            if deployment.attention_data_parallel > 1
            else []
        ),
        *([f"--pp-size {deployment.pipeline_parallel}"] if deployment.pipeline_parallel > 1 else []),
        f"--max-running-requests {deployment.max_num_seqs}",
        f"--chunked-prefill-size {deployment.max_num_batched_tokens}",
        f"--context-length {length}",
        f"--mem-fraction-static {deployment.gpu_memory_utilization:g}",
        *([] if deployment.prefix_caching else ["--disable-radix-cache"]),
        f"--dtype {deployment.weight_dtype}" if wide else f"--quantization {names[deployment.weight_dtype]}",
        *(["--kv-cache-dtype fp8_e4m3"] if small_cache else []),
    ]
    trtllm = [
        f"trtllm-serve {deployment.model}",
        f"--tp_size {deployment.tensor_parallel}",
        *([f"--ep_size {deployment.expert_parallel}"] if deployment.expert_parallel > 1 else []),
        *([f"--pp_size {deployment.pipeline_parallel}"] if deployment.pipeline_parallel > 1 else []),
        f"--max_batch_size {deployment.max_num_seqs}",
        f"--max_num_tokens {deployment.max_num_batched_tokens}",
        f"--max_seq_len {length}",
        f"--kv_cache_free_gpu_memory_fraction {deployment.gpu_memory_utilization:g}",
        *(["--kv_cache_dtype fp8"] if small_cache else []),
    ]
    return {"vllm": " ".join(vllm), "sglang": " ".join(sglang), "trtllm": " ".join(trtllm)}


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def searched_line(searched: Mapping[str, Any]) -> str:
    """What became of every option considered, and how quickly."""
    parts = ", ".join(f"{count:,} {name}" for name, count in searched["parts"].items() if count)
    return (
        f"Searched {searched['considered']:,} deployments in {searched['seconds']:.1f} s, {searched['per_minute']:,.0f} per "
        f"minute with {searched['workers']} worker{'s' if searched['workers'] > 1 else ''}: {parts} "
        f"({searched['search_simulations']:,} simulations)."
    )


def sentences(found: Plan) -> list[str]:
    """The answer in words, one thought per line."""
    if found.chosen is None:
        said = [f"No deployment of at most {found.max_gpus} devices keeps {found.slo}.", f"What binds: {found.binds}."]
        return [*said, searched_line(found.searched)]
    chosen = found.chosen
    said = [f"Cheapest for {found.slo}: {chosen.label}, {chosen.deployment.devices} devices, {chosen.usd_per_hour:.2f} US$/h."]
    if found.runner_up is not None:
        lost = found.why.get("runner_up")
        said.append(
            f"Runner-up: {found.runner_up.label}, {found.runner_up.usd_per_hour:.2f} US$/h" + (f": {lost}." if lost else ".")
        )
    said.append(f"What binds: {found.binds}.")
    if found.why:
        said += _said_why(found)
    holds = "still keeps the objective" if found.robust else "no longer keeps the objective"
    said.append(f"At the slow end of the calibration (every step x{found.stretch:.2f}) it {holds}{_instead(found)}.")
    said.append(searched_line(found.searched))
    said += [f"Note: {note}." for note in found.notes]
    said += [f"Price of {gpu}: {price['usd_per_hour']:.2f} US$/h ({price['source']})." for gpu, price in found.prices.items()]
    said.append(f"Start each of the {chosen.deployment.replicas} replicas behind a {chosen.deployment.router} router with:")
    return [*said, found.command, *(f"or: {text}" for name, text in found.commands.items() if name != "vllm")]


def _said_why(found: Plan) -> list[str]:
    about, chosen = found.why, found.chosen
    assert chosen is not None
    said = []
    for name, what in (("ttft", "Mean time to the first token"), ("tpot", "Mean time of each token after it")):
        parts = about["parts"][name]
        shown = ", ".join(f"{part['part']} {_seconds(part['seconds'])}" for part in parts if part["share"] >= 0.01)
        said.append(f"{what}, {_seconds(sum(part['seconds'] for part in parts))}: {shown}.")
    room = about["headroom"]
    load = (
        f"{room['rate_per_s']:.3g} requests/s" if not about["clients"] else f"{room['factor'] * about['clients']:.0f} clients"
    )
    atleast = "at least " if not math.isfinite(room["known_within"] or math.inf) else ""
    said.append(f"Headroom: it carries {atleast}{room['factor']:.2f} times the load within the objective ({load}).")
    if more := about.get("more"):
        values = ", ".join(
            f"{name} {_seconds(chosen.values[name])} to {_seconds(value)}" for name, value in more["values"].items()
        )
        said.append(
            f"One more replica ({more['usd_per_hour']:.2f} US$/h) brings {values}, and {more['headroom_factor']:.2f} times the "
            f"load: {more['requests_per_s_more_per_usd_per_hour']:.2g} requests/s more per dollar and hour."
        )
    for change in about["sensitivity"]:
        then = (
            "it still holds"
            if change["holds"]
            else f"{change['replicas']} replicas at {change['usd_per_hour']:.2f} US$/h"
            if change["replicas"]
            else "no number of replicas of this kind that is allowed, or twice as many, holds"
        )
        said.append(f"With {change['change']}: {then}.")
    energy = about["energy"]
    if energy["joules_per_output_token"]:
        power_kw = energy["mean_power_w"] / 1e3
        said.append(f"Energy: at most {energy['joules_per_output_token']:.2g} J per output token, {power_kw:.1f} kW.")
    return said


def _instead(found: Plan) -> str:
    if found.robust:
        return ""
    if found.safe is None:
        return "; nothing that was tried does"
    return f"; {found.safe.label} at {found.safe.usd_per_hour:.2f} US$/h does"


def tables(found: Plan) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of a plan: (title, rows)."""
    names = {
        "gpu": "gpu",
        "layout": "replica",
        "replicas": "replicas",
        "max_num_seqs": "batch",
        "max_num_batched_tokens": "chunk",
        "weight_dtype": "weights",
        "kv_dtype": "KV",
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
