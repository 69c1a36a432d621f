"""What a run is judged by: latencies per request, their statistics, goodput, utilization, throughput, cost and energy.

    TTFT = first token - sent            TPOT = (E2E - TTFT) / (output tokens - 1)
    E2E  = last token - sent             ITL  = gap between two tokens of one request, every token counted

Quantiles interpolate linearly between order statistics. Units: seconds, tokens, US dollars, joules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmlab.simulator.serving.cluster import NEVER, Log
from llmlab.simulator.serving.energy import BASIS
from llmlab.simulator.serving.slo import Slo
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


def request_table(workload: Workload, log: Log) -> dict[str, np.ndarray]:
    """One row per request in the order sent; what never happened is NaN (and replica -1)."""
    sent = np.array(log.sent_ns)

    def since_sent(when_ns: list[int]) -> np.ndarray:
        when = np.array(when_ns)
        return np.where(when == NEVER, np.nan, (when - sent) / NANOSECONDS)

    ttft_s, e2e_s = since_sent(log.first_token_ns), since_sent(log.finished_ns)
    more = workload.output_tokens - 1
    tpot_s = np.full(len(workload), np.nan)
    tpot_s[more > 0] = (e2e_s - ttft_s)[more > 0] / more[more > 0]
    return {
        "request_id": np.arange(len(workload)),
        "arrival_s": np.where(sent == NEVER, np.nan, sent / NANOSECONDS),
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
        "cached_tokens": np.array(log.cached_tokens),
        "preemptions": np.array(log.preemptions),
        "replica": np.array(log.replica),
        "queue_s": since_sent(log.scheduled_ns),
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": e2e_s,
    }


def statistics(values: np.ndarray, extra: tuple[str, ...] = ()) -> dict[str, float | None]:
    """Mean, quantiles and maximum of the finite values; None where there are none."""
    finite = np.sort(values[np.isfinite(values)])
    return {name: _statistic(finite, name) for name in (*STATISTICS, *(name for name in extra if name not in STATISTICS))}


def _statistic(ascending: np.ndarray, name: str) -> float | None:
    if not len(ascending):
        return None
    if name == "mean":
        return float(ascending.mean())
    return float(np.quantile(ascending, 1.0 if name == "max" else float(name[1:]) / 100))


def weighted_statistics(counts: Mapping[int, int], extra: tuple[str, ...] = ()) -> dict[str, float | None]:
    """The same for values given as nanoseconds -> how often, without writing them out.

    >>> weighted_statistics({10**9: 3, 2 * 10**9: 1})["p50"], weighted_statistics({10**9: 3, 2 * 10**9: 1})["mean"]
    (1.0, 1.25)
    """
    names = (*STATISTICS, *(name for name in extra if name not in STATISTICS))
    if not counts:
        return dict.fromkeys(names)
    values = np.array(sorted(counts), dtype=np.int64)
    times = np.array([counts[value] for value in values.tolist()], dtype=np.int64)
    upto, seconds = np.cumsum(times), values / NANOSECONDS
    total = int(upto[-1])
    found: dict[str, float | None] = {}
    for name in names:
        if name == "mean":
            found[name] = float(np.dot(seconds, times) / total)
            continue
        place = (total - 1) * (1.0 if name == "max" else float(name[1:]) / 100)
        below, above = int(np.floor(place)), int(np.ceil(place))
        low, high = (float(seconds[np.searchsorted(upto, rank, side="right")]) for rank in (below, above))
        found[name] = low + (high - low) * (place - below)
    return found


def good(table: Mapping[str, np.ndarray], slo: Slo) -> np.ndarray:
    """Which requests finished within the tightest limit on each of TTFT, TPOT and E2E (a single token has no TPOT)."""
    kept = np.isfinite(table["e2e_s"])
    for metric in ("ttft", "tpot", "e2e"):
        values = table[f"{metric}_s"]
        kept &= ~(values > slo.limit(metric))
    return kept


def summarize(
    workload: Workload,
    log: Log,
    table: Mapping[str, np.ndarray],
    *,
    devices_per_replica: int = 1,
    kv_blocks: int | None = None,
    usd_per_hour: float = 0.0,
    power_w: float = 0.0,
    idle_power_w: float = 0.0,
    busy_power_w: float | None = None,
    slo: Slo | None = None,
) -> dict[str, Any]:
    """Everything about a run as one plain dictionary.

    Energy takes a device at `busy_power_w` while its replica runs a step and at `idle_power_w` otherwise: an estimate, see
    `energy.py`. `energy_most_j` takes `power_w` for every step: an upper bound. Both are None where the power is unknown.
    """
    asked = tuple(target.statistic for target in slo.targets) if slo else ()
    finished = np.isfinite(table["e2e_s"])
    ends = table["arrival_s"][finished] + table["e2e_s"][finished]
    begin = float(np.nanmin(table["arrival_s"])) if np.isfinite(table["arrival_s"]).any() else 0.0
    simulated_s = float(ends.max() - begin) if finished.any() else 0.0
    output_tokens = int(table["output_tokens"][finished].sum())
    prompt_tokens = int(table["prompt_tokens"][finished].sum())
    cached = int(table["cached_tokens"][finished].sum())
    busy_s = sum(log.busy_ns) / NANOSECONDS
    replicas = len(log.busy_ns)

    def per_s(amount: float) -> float | None:
        return amount / simulated_s if simulated_s else None

    usd = usd_per_hour * simulated_s / 3600
    idle_s = max(0.0, replicas * simulated_s - busy_s)

    def energy(busy_w: float) -> float | None:
        return devices_per_replica * (busy_w * busy_s + idle_power_w * idle_s) if power_w else None

    energy_j, most_j = energy(power_w if busy_power_w is None else busy_power_w), energy(power_w)
    summary: dict[str, Any] = {
        "requests": len(workload),
        "finished": int(finished.sum()),
        "failed": len(log.refused),
        "iterations": log.num_steps,
        "simulated_s": simulated_s,
        "ttft_s": statistics(table["ttft_s"], asked),
        "tpot_s": statistics(table["tpot_s"], asked),
        "itl_s": weighted_statistics(log.gaps_ns, asked),
        "e2e_s": statistics(table["e2e_s"], asked),
        "queue_s": statistics(table["queue_s"], asked),
        "requests_per_s": per_s(int(finished.sum())),
        "tokens_per_s": per_s(output_tokens),
        "total_tokens_per_s": per_s(output_tokens + prompt_tokens),
        "output_tokens": output_tokens,
        "prompt_tokens": prompt_tokens,
        "cached_prompt_fraction": cached / prompt_tokens if prompt_tokens else None,
        "preemptions": int(table["preemptions"].sum()),
        "utilization": busy_s / (replicas * simulated_s) if simulated_s else None,
        "mean_in_system": per_s(float(np.nansum(table["e2e_s"]))),
        "most_running": max(log.most_running),
        "kv_blocks": kv_blocks,
        "kv_peak_fraction": None,
        "usd": usd if usd_per_hour else None,
        "usd_per_million_output_tokens": usd / output_tokens * 1e6 if usd_per_hour and output_tokens else None,
        "usd_per_million_tokens": usd / (output_tokens + prompt_tokens) * 1e6 if usd_per_hour and output_tokens else None,
        "usd_per_request": usd / int(finished.sum()) if usd_per_hour and finished.any() else None,
        "energy_j": energy_j,
        "energy_most_j": most_j,
        "energy_basis": BASIS if energy_j is not None else None,
        "joules_per_request": energy_j / int(finished.sum()) if energy_j is not None and finished.any() else None,
        "joules_per_output_token": energy_j / output_tokens if energy_j is not None and output_tokens else None,
    }
    if kv_blocks and (seen := [free for free in log.least_free_blocks if free < 2**62]):
        summary["kv_peak_fraction"] = 1 - min(seen) / kv_blocks
    if slo is not None:
        kept = good(table, slo)
        broken = slo.broken(summary)
        if log.refused:
            broken.append(f"{len(log.refused)} requests refused")
        summary |= {
            "slo": str(slo),
            "slo_met": not broken,
            "slo_broken": broken,
            "goodput_requests_per_s": per_s(int(kept.sum())),
            "goodput_fraction": float(kept.mean()),
        }
    return summary
