"""From files to files: what `llmlab simulate serve` does between parsing and printing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast, get_args

from llmlab.reference.errors import InputError
from llmlab.reference.files import check_ending
from llmlab.simulator.serving.bench_result import RESULT_ENDING, write_bench_result
from llmlab.simulator.serving.deployment import Deployment, Site, resolve
from llmlab.simulator.serving.metrics import STATISTICS
from llmlab.simulator.serving.pools import Fleet
from llmlab.simulator.serving.simulate import REQUEST_ENDINGS, Loop, SimulationResult, simulate
from llmlab.simulator.serving.simulate_fleet import FleetResult, simulate_fleet
from llmlab.simulator.serving.slo import Slo, parse_slo
from llmlab.simulator.tracing import ENDINGS as TRACE_ENDINGS
from llmlab.simulator.workload.spec import load_workload
from llmlab.simulator.workload.workload import Workload


def read_workload(
    path: str | Path, *, first: int | None = None, rate_factor: float = 1.0, clients: int | None = None, seed: int = 0
) -> Workload:
    """Read a trace or a workload file, and shorten, speed up or close the loop.

    Raises:
        InputError: the file is bad, or a change is out of range.
    """
    workload = load_workload(path, seed)
    try:
        if first is not None:
            workload = workload.first(first)
        if rate_factor != 1.0:
            workload = workload.at_rate(rate_factor)
        if clients is not None:
            workload = workload.with_clients(clients)
    except ValueError as error:
        raise InputError(path, "workload", Path(path).name, str(error)) from None
    return workload


def run_files(
    deployment: Deployment | Fleet,
    workload: str | Path,
    *,
    slo: str | None = None,
    first: int | None = None,
    rate_factor: float = 1.0,
    clients: int | None = None,
    seed: int = 0,
    out_requests: Path | None = None,
    trace: Path | None = None,
    out_bench: Path | None = None,
    states: bool = False,
    loop: str = "auto",
    stream: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SimulationResult, Slo | None]:
    """Check every input, simulate, then write what was asked for; `states` keeps what a picture over time needs.

    Raises:
        InputError: any input is wrong, or a file cannot be written; nothing is left half-written.
    """
    objective = parse_slo(slo) if slo is not None else None
    for path, endings in ((out_requests, REQUEST_ENDINGS), (trace, TRACE_ENDINGS), (out_bench, (RESULT_ENDING,))):
        if path is not None:
            check_ending(path, endings)
    site = deployment if isinstance(deployment, Fleet) else resolve(deployment)
    load = read_workload(workload, first=first, rate_factor=rate_factor, clients=clients, seed=seed)
    if loop not in get_args(Loop):
        raise InputError("simulate serve", "--path", loop, f"is none of {', '.join(get_args(Loop))}")
    if isinstance(site, Fleet) or states:
        record: Literal["requests", "steps", "states"] = "states" if states else "steps" if trace else "requests"
        result: SimulationResult = simulate_fleet(
            site, load, seed=seed, record=record, path=cast(Loop, loop), progress=progress
        )
    else:
        kept: Literal["requests", "steps"] = "steps" if trace else "requests"
        result = simulate(site, load, seed=seed, record=kept, path=cast(Loop, loop), stream=stream, progress=progress)
    if out_requests is not None:
        result.write_requests(out_requests)
    if trace is not None:
        result.write_trace(trace)
    if out_bench is not None:
        write_bench_result(result, out_bench, objective)
    return result, objective


def describe(result: SimulationResult, slo: Slo | None = None) -> dict[str, Any]:
    """The JSON form of a run."""
    site, deployment = result.site, result.deployment
    low, high = result.step_interval()
    notes = [note for each in _sites(result) for note in each.profile.notes]
    return result.summary(slo) | {
        "breakdown": result.breakdown,
        "step_time_interval": [low, high],
        "deployment": {
            "model": site.model.name,
            "device": site.profile.device.name,
            "tensor_parallel": deployment.tensor_parallel,
            "devices": deployment.devices // deployment.replicas,
            "replicas": deployment.replicas,
            "scheduler": deployment.scheduler,
            "router": result.fleet.router if isinstance(result, FleetResult) else deployment.router,
            "engine": site.engine.name,
            "max_num_seqs": site.max_num_seqs,
            "max_num_batched_tokens": site.max_num_batched_tokens,
            "kv_blocks": site.kv_blocks,
            "block_tokens": deployment.block_tokens,
            "prefix_caching": deployment.prefix_caching,
            "weight_dtype": site.cost.weight_dtype,
            "kv_dtype": site.cost.kv_dtype,
            "features": asdict(deployment.features),
            "usd_per_hour": sum(each.usd_per_hour for each in _sites(result)),
        },
        **({"fleet": _fleet_settings(result.fleet)} if isinstance(result, FleetResult) else {}),
        "workload": result.workload.name,
        "notes": [*dict.fromkeys(notes), *sorted(set(result.log.refused.values()))[:3]],
    }


def _sites(result: SimulationResult) -> Sequence[Site]:
    return result.sites if isinstance(result, FleetResult) else (result.site,)


def _fleet_settings(fleet: Fleet) -> dict[str, Any]:
    """What holds for a whole fleet, as plain values."""
    plain = {name: getattr(fleet, name) for name in ("failures", "retries", "transfer", "prefix_pool")}
    return {"router": fleet.router, "staleness_s": fleet.staleness_s} | {
        name: asdict(value) if value is not None else None for name, value in plain.items()
    }


def _pool_rows(pools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One readable row per pool."""
    return [
        {
            "pool": row["pool"],
            "replicas": f"{row['replicas']} x {row['devices']} {row['device']}",
            "mean up": row["mean_up"],
            "utilization": row["utilization"],
            "KV peak": row["kv_peak_fraction"],
            "starts": row["starts"],
            "outages": row["outages"],
            "GPU-hours": row["gpu_hours"],
            "US$": row["usd"],
            "energy, Wh": None if row["energy_j"] is None else row["energy_j"] / 3600,
        }
        for row in pools
    ]


def _fleet_extras(found: dict[str, Any]) -> dict[str, Any]:
    """What only a fleet has, in words."""
    extras: dict[str, Any] = {"GPU-hours": found["gpu_hours"]}
    if found["outages"]:
        extras |= {
            "outages / availability": f"{found['outages']} / {found['availability']:.4f}",
            "retries / requests retried": f"{found['retries']} / {found['retried_requests']}",
        }
    for name, title in (("transfers", "KV transfers"), ("prefix_reads", "prefix reads")):
        if found.get(name, {}).get("count"):
            moved = found[name]
            extras[f"{title}: number, mean s, mean wait s"] = (
                f"{moved['count']}, {moved['transfer_s']['mean']:.4g}, {moved['wait_s']['mean']:.4g}"
            )
    if "first_token_from" in found:
        extras["first token comes from the"] = f"{found['first_token_from']} worker"
    if "sessions" in found:
        sessions = found["sessions"]
        extras |= {
            "sessions finished": f"{sessions['finished']} of {sessions['count']}",
            "turns of a session, mean": sessions["turns"]["mean"],
            "seconds of a session, p50": sessions["session_s"]["p50"],
            "time to first token, later turns, mean": sessions["later_turn_ttft_s"]["mean"],
            "later turns' prompt tokens from cache": sessions["later_turns_cached_fraction"],
        }
    return extras


def rows_of(result: SimulationResult, slo: Slo | None = None) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tables of a run: (title, rows)."""
    found = describe(result, slo)
    where = found["deployment"]
    pools = found.get("pools", [where])
    placed = " + ".join(f"{row['replicas']} x {row['devices']} {row['device']}" for row in pools)
    title = (
        f"{where['model']} on {placed}, {found['workload']}: "
        f"{found['requests']} requests, {found['iterations']} steps, simulated in {found['wall_s']:.1f} s"
    )
    seconds = [
        {"seconds": name, **{key: found[f"{metric}_s"][key] for key in STATISTICS}}
        for metric, name in (
            ("ttft", "time to first token"),
            ("tpot", "time per output token"),
            ("itl", "inter-token latency"),
            ("e2e", "whole request"),
            ("queue", "of it waiting"),
        )
    ]
    others = {
        "finished / failed": f"{found['finished']} / {found['failed']}",
        "simulated seconds": found["simulated_s"],
        "output tokens/s": found["tokens_per_s"],
        "requests/s": found["requests_per_s"],
        "utilization": found["utilization"],
        "time bound by": ", ".join(f"{name} {share:.0%}" for name, share in found["bound_by"].items()),
        "KV cache peak": found["kv_peak_fraction"],
        "preemptions": found["preemptions"],
        "prompt tokens from cache": found["cached_prompt_fraction"],
        "US$/hour": where["usd_per_hour"],
        "US$ per million output tokens": found["usd_per_million_output_tokens"],
        "joules per output token (estimate)": found["joules_per_output_token"],
        "simulated by": f"the {found['path']} loop" + (f" ({found['path_reason']})" if found["path_reason"] else ""),
        "step times known within": "x{:.2f} to x{:.2f}".format(*found["step_time_interval"]),
    }
    if slo is not None:
        others[f"objective {slo}"] = "met" if found["slo_met"] else "broken: " + "; ".join(found["slo_broken"])
        others["goodput, requests/s"] = found["goodput_requests_per_s"]
    if isinstance(result, FleetResult):
        others |= _fleet_extras(found)
    others |= {f"note {number}": note for number, note in enumerate(found["notes"], start=1)}
    shown = [{"metric": name, "value": "-" if value is None else value} for name, value in others.items()]
    tables = [(title, seconds), ("Run", shown)]
    if isinstance(result, FleetResult):
        tables.append(("Pools", _pool_rows(found["pools"])))
    return [(name, [{k: "-" if v is None else v for k, v in row.items()} for row in rows]) for name, rows in tables]
