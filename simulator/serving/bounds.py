"""What the cost model alone rules out: lower bounds on latency and on replicas that hold for any schedule.

A step computes n tokens, of which e are the last of a slice that emits a token; the others are q = n - e. At most
`max_num_seqs` slices emit, at most `max_num_batched_tokens` tokens run. Its seconds are those of the tables
(`cost.assemble`): linear layers L(n) with gaps and host, output rows E(e), host work h per request, and decode attention. So
with any a <= min L(n) / n

    seconds >= a q + b e + g c,    b = min over (q, e) of (L(q + e) + E(e) + h e - a q) / e,

where c is what the decodes attend to and g the least seconds of decode attention per token of it. A request of P prompt and
N output tokens needs q = P - 1, e = N and c = sum of P + j for j < N in all, however it is scheduled and as often as it is
preempted: recomputing costs more than the decode it replaces, since g <= a / 2. Every step has one owner, so the work of
requests that must be done within a stretch of time bounds the replicas from below. With s pipeline stages a step is priced as
one micro-batch, which holds at least 1 / s of each amount and, since a <= b, takes at least 1 / s of the bound. Units: seconds
and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmlab.simulator.cost.assemble import TABLE_ROWS, linear_s
from llmlab.simulator.cost.step import StepCost
from llmlab.simulator.serving.deployment import Site
from llmlab.simulator.serving.slo import Slo, Target
from llmlab.simulator.workload.workload import NANOSECONDS, Workload

BOUNDED_SCHEDULERS = ("chunked_prefill", "continuous_batching", "guaranteed_no_evict", "guaranteed_prefill_first")
"""Schedulers whose requests compute one token per step after the first: what the bounds are proved for."""

TRADES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""How much of the least time per token is charged to prompts; the rest of a step is charged to its emitted tokens."""

MEAN_FACTOR = 10.0
"""A mean that is kept leaves at most a tenth of the values above ten times the limit."""


@dataclass(frozen=True)
class Bounds:
    """What the cost model alone says about a group of deployments that differ in replicas.

    Attributes:
        reason: why no number of replicas can keep the objective; empty where one might.
        replicas: no fewer can do the work in time.
        values: no run's value of a clause of the objective is below this.
    """

    reason: str = ""
    replicas: int = 1
    values: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Rates:
    """A step takes at least `extra_s` q + `emitted_s` e + `context_s` c seconds."""

    extra_s: float
    emitted_s: float
    context_s: float


@dataclass(frozen=True)
class Demand:
    """Stretches of a workload in which work must be done: a row of (q, e, c, seconds) each, requests that may miss left out."""

    rows: np.ndarray


def demand(workload: Workload, slo: Slo) -> Demand:
    """Collect what must be done by when, over stretches of several lengths and for several longest outputs."""
    rows: list[tuple[float, float, float, float]] = []
    if workload.clients:
        return Demand(np.zeros((0, 4)))
    prompts, outputs = workload.prompt_tokens.astype(float), workload.output_tokens.astype(float)
    shared = bool(workload.block_hashes)
    extra = np.zeros_like(prompts) if shared else prompts - 1
    context = np.zeros_like(prompts) if shared else (outputs - 1) * prompts + outputs * (outputs - 1) / 2
    first = [_relaxed(target, len(workload)) for target in slo.targets if target.metric == "ttft"]
    each = [_relaxed(target, int((outputs > 1).sum())) for target in slo.targets if target.metric == "tpot"]
    whole = [_relaxed(target, len(workload)) for target in slo.targets if target.metric == "e2e"]
    arrival_s = workload.arrival_ns / NANOSECONDS
    span_s = float(arrival_s[-1] - arrival_s[0])
    cuts = sorted({float(cut) for cut in np.quantile(outputs, (0.5, 0.75, 0.9, 0.97, 1.0), method="lower")})

    def add(
        chosen: np.ndarray, tokens: np.ndarray, emitted: np.ndarray, contexts: np.ndarray, within_s: float, spare: int
    ) -> None:
        if len(chosen) <= spare:
            return
        at_s, size = arrival_s[chosen], np.concatenate(([0.0], np.cumsum((prompts + outputs)[chosen])))
        for part in (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.0):
            last = np.searchsorted(at_s, at_s + part * span_s, side="right")
            begin = int(np.argmax(size[last] - size[:-1]))
            inside = slice(begin, int(last[begin]))
            amounts = [column[chosen][inside] for column in (tokens, emitted, contexts)]
            count = len(amounts[0])
            if count <= spare:
                continue
            seconds = float(at_s[inside][-1] - at_s[inside][0]) + within_s
            # whichever requests miss, they take no more out of each sum than its largest terms
            q, e, c = (float(np.partition(amount, count - spare - 1)[: count - spare].sum()) for amount in amounts)
            rows.append((q, e, c, seconds))

    everyone = np.arange(len(workload))
    for limit_s, spare in first:
        add(everyone, extra, np.ones_like(prompts), np.zeros_like(prompts), limit_s, spare)
        for step_s, more in each:
            for cut in cuts:
                add(np.flatnonzero(outputs <= cut), extra, outputs, context, limit_s + step_s * (cut - 1), spare + more)
    for limit_s, spare in whole:
        add(everyone, extra, outputs, context, limit_s, spare)
    return Demand(np.array(rows).reshape(-1, 4))


def _relaxed(target: Target, count: int) -> tuple[float, int]:
    """(seconds, how many of `count` values may lie above) that follow from a clause."""
    if target.quantile is None:
        return MEAN_FACTOR * target.seconds, math.floor(count / MEAN_FACTOR)
    return target.seconds, count - math.floor((count - 1) * target.quantile) - 1


def _linear(cost: StepCost, tokens: int) -> float:
    t = cost.tables
    return float(linear_s(t.tokens_s, t.tokens_far_s, t.rows, tokens)) + t.gaps_s + t.host_step_s


def _grid(cost: StepCost, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Token counts up to `most` between which L is a straight line, and L there."""
    far = [rows for rows in cost.tables.rows if TABLE_ROWS < rows < most]
    tokens = np.array([*range(1, min(most, TABLE_ROWS) + 1), *far, *([most] if most > TABLE_ROWS else [])])
    return tokens, np.array([_linear(cost, int(count)) for count in tokens])


def context_rate(cost: StepCost, max_num_seqs: int, longest: int) -> float:
    """The least seconds of decode attention per token attended to, over batches up to `max_num_seqs`.

    Tables are straight lines between their contexts, and so the ratio is least at one of them.
    """
    t = cost.tables
    contexts = np.array(t.contexts)
    contexts = contexts[: int(np.searchsorted(contexts, longest)) + 1]
    least = math.inf
    for batch in range(1, max_num_seqs + 1):
        seconds = np.array(cost.decode_table(batch)[: len(contexts)]) - t.decode_launch_s
        least = min(least, float((seconds / (batch * contexts)).min()))
    return max(0.0, least)


def rates(cost: StepCost, max_num_seqs: int, largest: int, context_s: float) -> list[Rates]:
    """Lower bounds on a step's seconds, one per trade between prompts and emitted tokens."""
    tokens, linear = _grid(cost, largest)
    least = float((linear / tokens).min())
    t = cost.tables
    emitted = np.arange(1, math.ceil(max_num_seqs / t.stages) + 1)
    output = np.array([float(linear_s(t.emitted_s, t.emitted_far_s, t.rows, int(rows))) for rows in emitted])
    own = output + t.host_request_step_s * emitted
    found = []
    for trade in TRADES:
        extra = trade * least
        rest = np.minimum.accumulate((linear - extra * tokens)[::-1])[::-1]  # over all n >= a place of the grid
        place = np.maximum(np.searchsorted(tokens, emitted, side="right") - 1, 0)
        each = float(((rest[place] + extra * emitted + own) / emitted).min())
        found.append(Rates(extra / t.stages, each / t.stages, min(context_s, extra / 2) / t.stages))
    return found


def least_values(site: Site, workload: Workload, slo: Slo, context_s: float, largest: int) -> dict[str, float]:
    """What every clause of the objective comes to at the least, even where each request is alone."""
    cost, t = site.cost, site.cost.tables
    launch_s = min(t.launch_s, t.graph_launch_s) + t.host_step_s
    output = t.emitted_s[1] + t.host_request_step_s
    tokens, linear = _grid(cost, largest)
    step_s = max(float(linear[0]) + output, launch_s)
    prompts, outputs = workload.prompt_tokens.astype(float), workload.output_tokens
    if workload.block_hashes:
        first_s = np.full(len(workload), step_s)
        each_s = np.full(len(workload), step_s)
    else:
        first_s = np.maximum(prompts / t.stages * float((linear / tokens).min()), np.ceil(prompts / largest) * step_s)
        known = (prompts + 1) / t.stages
        recomputed = np.interp(known, tokens, linear) + output  # one that was preempted emits after its own prompt
        each_s = np.minimum(np.maximum(step_s, float(linear[0]) + output + context_s * known), recomputed)
        each_s = np.maximum(each_s, step_s)
    first_s = first_s + site.engine.host_request_s
    values = {"ttft": first_s, "e2e": first_s + (outputs - 1) * each_s, "tpot": each_s[outputs > 1], "itl": np.array([step_s])}
    found = {}
    for target in slo.targets:
        ascending = np.sort(values[target.metric])
        name = f"{target.metric}_{target.statistic}"
        if not len(ascending):
            found[name] = 0.0
        elif target.quantile is None:
            found[name] = float(ascending.mean())
        else:
            found[name] = float(ascending[math.floor((len(ascending) - 1) * target.quantile)])
    return found


def bounds(site: Site, workload: Workload, slo: Slo, needed: Demand | None = None, context_s: float | None = None) -> Bounds:
    """Lower bounds that hold for any schedule; `needed` and `context_s` save computing them again.

    A scheduler the bounds are not proved for is only refused what can never fit.
    """
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    if site.longest_tokens is not None and longest > site.longest_tokens:
        return Bounds(f"context: requests of {longest} tokens pass the model's {site.longest_tokens}")
    blocks = -(-(longest - 1) // site.deployment.block_tokens)
    if blocks > site.kv_blocks:
        return Bounds(f"HBM capacity: the longest request needs {blocks} KV blocks, {site.kv_blocks} fit beside the weights")
    if site.deployment.scheduler not in BOUNDED_SCHEDULERS or type(site.cost) is not StepCost:
        return Bounds()
    largest = site.max_num_batched_tokens
    if site.deployment.scheduler in ("continuous_batching", "guaranteed_prefill_first"):
        largest = max(largest, longest)
    if context_s is None:
        context_s = context_rate(site.cost, site.max_num_seqs, longest)
    values = least_values(site, workload, slo, context_s, largest)
    for target in slo.targets:
        name = f"{target.metric}_{target.statistic}"
        if values[name] > target.seconds:
            return Bounds(f"latency: {name} is at least {values[name] * 1e3:.4g} ms whatever the load", values=values)
    needed = demand(workload, slo) if needed is None else needed
    if not len(needed.rows):
        return Bounds(values=values)
    steps = rates(site.cost, site.max_num_seqs, largest, context_s)
    work_s = needed.rows[:, :3] @ np.array([[rate.extra_s, rate.emitted_s, rate.context_s] for rate in steps]).T
    replicas = float((work_s / needed.rows[:, 3:]).max())
    return Bounds(replicas=max(1, math.ceil(replicas - 1e-9)), values=values)
