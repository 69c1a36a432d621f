"""What a run is judged by: latencies per request, their statistics, goodput, utilization, throughput, cost and energy.

    TTFT = first token - sent            TPOT = (E2E - TTFT) / (output tokens - 1)
    E2E  = last token - sent             ITL  = gap between two tokens of one request, every token counted

Quantiles interpolate linearly between order statistics. Units: seconds, tokens, US dollars, joules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from llmlab.simulator.serving.cluster import NEVER, Log
from llmlab.simulator.serving.energy import BASIS
from llmlab.simulator.serving.sketch import Exact, GapCounts, Sketch
from llmlab.simulator.serving.slo import Slo
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


CHUNK = 1 << 16
"""Requests whose table is made at once where not all are kept."""


def request_table(workload: Workload, log: Log, part: slice = slice(None)) -> dict[str, np.ndarray]:
    """One row per request in the order sent; what never happened is NaN (and replica -1)."""
    sent = np.array(log.sent_ns[part])

    def since_sent(when_ns: list[int]) -> np.ndarray:
        when = np.array(when_ns[part])
        return np.where(when == NEVER, np.nan, (when - sent) / NANOSECONDS)

    ttft_s, e2e_s = since_sent(log.first_token_ns), since_sent(log.finished_ns)
    more = workload.output_tokens[part] - 1
    tpot_s = np.full(len(sent), np.nan)
    tpot_s[more > 0] = (e2e_s - ttft_s)[more > 0] / more[more > 0]
    return {
        "request_id": np.arange(len(workload))[part],
        "arrival_s": np.where(sent == NEVER, np.nan, sent / NANOSECONDS),
        "prompt_tokens": workload.prompt_tokens[part],
        "output_tokens": workload.output_tokens[part],
        "cached_tokens": np.array(log.cached_tokens[part]),
        "preemptions": np.array(log.preemptions[part]),
        "replica": np.array(log.replica[part]),
        "queue_s": since_sent(log.scheduled_ns),
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "e2e_s": e2e_s,
    }


def request_tables(workload: Workload, log: Log) -> Iterator[dict[str, np.ndarray]]:
    """The same table, `CHUNK` requests at a time."""
    for begin in range(0, len(workload), CHUNK):
        yield request_table(workload, log, slice(begin, begin + CHUNK))


def statistics(values: np.ndarray, extra: tuple[str, ...] = ()) -> dict[str, float | None]:
    """Mean, quantiles and maximum of the finite values; None where there are none."""
    kept = Exact()
    kept.add(values)
    return kept.read(names_with(extra))


def names_with(extra: tuple[str, ...]) -> tuple[str, ...]:
    """The usual statistics and those asked for besides."""
    return (*STATISTICS, *(name for name in extra if name not in STATISTICS))


class Tally:
    """Sums and statistics over the tables of a run, all at once or part by part.

    Attributes:
        exact: keep every latency and sort; else keep a sketch of each metric.
    """

    METRICS = ("ttft_s", "tpot_s", "e2e_s", "queue_s")

    def __init__(self, tables: Iterable[Mapping[str, np.ndarray]], *, exact: bool, slo: Slo | None) -> None:
        self.kept = {name: Exact() if exact else Sketch() for name in self.METRICS}
        self.finished = self.output_tokens = self.prompt_tokens = self.cached_tokens = self.preemptions = self.good = 0
        self.begin_s, self.end_s, self.in_system_s = np.inf, -np.inf, 0.0
        for table in tables:
            self.add(table, slo)

    def add(self, table: Mapping[str, np.ndarray], slo: Slo | None) -> None:
        """Count some requests."""
        finished = np.isfinite(table["e2e_s"])
        self.finished += int(finished.sum())
        self.output_tokens += int(table["output_tokens"][finished].sum())
        self.prompt_tokens += int(table["prompt_tokens"][finished].sum())
        self.cached_tokens += int(table["cached_tokens"][finished].sum())
        self.preemptions += int(table["preemptions"].sum())
        if np.isfinite(table["arrival_s"]).any():
            self.begin_s = min(self.begin_s, float(np.nanmin(table["arrival_s"])))
        if finished.any():
            self.end_s = max(self.end_s, float((table["arrival_s"][finished] + table["e2e_s"][finished]).max()))
        self.in_system_s += float(np.nansum(table["e2e_s"]))
        for name, kept in self.kept.items():
            kept.add(table[name])
        if slo is not None:
            self.good += int(good(table, slo).sum())

    @property
    def simulated_s(self) -> float:
        """From the first arrival to the last token."""
        return self.end_s - self.begin_s if self.finished else 0.0


def weighted_statistics(counts: Mapping[int, int], extra: tuple[str, ...] = ()) -> dict[str, float | None]:
    """The same for values given as nanoseconds -> how often, without writing them out.

    >>> weighted_statistics({10**9: 3, 2 * 10**9: 1})["p50"], weighted_statistics({10**9: 3, 2 * 10**9: 1})["mean"]
    (1.0, 1.25)
    """
    names = names_with(extra)
    if not counts:
        return dict.fromkeys(names)
    if isinstance(counts, GapCounts):
        values, times = counts.pairs[:, 0], counts.pairs[:, 1]
    else:
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
    table: Mapping[str, np.ndarray] | None,
    *,
    devices_per_replica: int = 1,
    kv_blocks: int | None = None,
    usd_per_hour: float = 0.0,
    power_w: float = 0.0,
    idle_power_w: float = 0.0,
    busy_power_w: float | None = None,
    slo: Slo | None = None,
) -> dict[str, Any]:
    """Everything about a run as one plain dictionary; without its table quantiles come from sketches.

    Energy takes a device at `busy_power_w` while its replica runs a step and at `idle_power_w` otherwise: an estimate, see
    `energy.py`. `energy_most_j` takes `power_w` for every step: an upper bound. Both are None where the power is unknown.
    """
    asked = tuple(target.statistic for target in slo.targets) if slo else ()
    if table is None:
        tally = Tally(request_tables(workload, log), exact=False, slo=slo)
    else:
        tally = Tally([table], exact=True, slo=slo)
    simulated_s, output_tokens, prompt_tokens = tally.simulated_s, tally.output_tokens, tally.prompt_tokens
    latencies = {name: kept.read(names_with(asked)) for name, kept in tally.kept.items()}
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
        "finished": tally.finished,
        "failed": len(log.refused),
        "iterations": log.num_steps,
        "simulated_s": simulated_s,
        "ttft_s": latencies["ttft_s"],
        "tpot_s": latencies["tpot_s"],
        "itl_s": weighted_statistics(log.gaps_ns, asked),
        "e2e_s": latencies["e2e_s"],
        "queue_s": latencies["queue_s"],
        "requests_per_s": per_s(tally.finished),
        "tokens_per_s": per_s(output_tokens),
        "total_tokens_per_s": per_s(output_tokens + prompt_tokens),
        "output_tokens": output_tokens,
        "prompt_tokens": prompt_tokens,
        "cached_prompt_fraction": tally.cached_tokens / prompt_tokens if prompt_tokens else None,
        "preemptions": tally.preemptions,
        "utilization": busy_s / (replicas * simulated_s) if simulated_s else None,
        "mean_in_system": per_s(tally.in_system_s),
        "most_running": max(log.most_running),
        "kv_blocks": kv_blocks,
        "kv_peak_fraction": None,
        "usd": usd if usd_per_hour else None,
        "usd_per_million_output_tokens": usd / output_tokens * 1e6 if usd_per_hour and output_tokens else None,
        "usd_per_million_tokens": usd / (output_tokens + prompt_tokens) * 1e6 if usd_per_hour and output_tokens else None,
        "usd_per_request": usd / tally.finished if usd_per_hour and tally.finished else None,
        "energy_j": energy_j,
        "energy_most_j": most_j,
        "energy_basis": BASIS if energy_j is not None else None,
        "joules_per_request": energy_j / tally.finished if energy_j is not None and tally.finished else None,
        "joules_per_output_token": energy_j / output_tokens if energy_j is not None and output_tokens else None,
    }
    if kv_blocks and (seen := [free for free in log.least_free_blocks if free < 2**62]):
        summary["kv_peak_fraction"] = 1 - min(seen) / kv_blocks
    if slo is not None:
        broken = slo.broken(summary)
        if log.refused:
            broken.append(f"{len(log.refused)} requests refused")
        summary |= {
            "slo": str(slo),
            "slo_met": not broken,
            "slo_broken": broken,
            "goodput_requests_per_s": per_s(tally.good),
            "goodput_fraction": tally.good / len(workload),
        }
    return summary
