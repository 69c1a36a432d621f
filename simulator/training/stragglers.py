"""Steps that differ: devices that are not alike, times that jitter, a slow rank, batches that come late. Units: seconds.

A step ends with its slowest rank. The time of a rank's microbatches is multiplied by what its device is worth (drawn once for
a run, or given) and by what this step is worth (drawn per step). Ranks of a tensor- or context-parallel group meet in layers,
so a stage takes the largest factor of its group; stages wait for each other along the schedule, which is replayed action by
action; data-parallel replicas meet at the end. Communication, the optimizer and the constant of a step do not vary here.

Batches are loaded beside training, at most `prefetch` ahead: batch n begins to load when batch n - 1 is loaded and step
n - prefetch has begun; with `prefetch` 0 a step loads its own batch first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.simulator.training.pipeline_time import PAIRED, durations_of, order_of
from llmlab.simulator.training.step import StepPrediction

DISTRIBUTIONS = ("normal", "lognormal")


@dataclass(frozen=True)
class Variation:
    """What makes steps differ.

    Attributes:
        jitter: coefficient of variation of a rank's time from step to step.
        device_spread: coefficient of variation among devices, the same in every step.
        slow_ranks: rank -> factor on its time.
        distribution: of both, with mean 1.
        load_s: seconds to load a batch; 0 leaves loading out.
        load_jitter: its coefficient of variation.
        prefetch: batches loaded ahead.
    """

    jitter: float = 0.0
    device_spread: float = 0.0
    slow_ranks: Mapping[int, float] = field(default_factory=dict)
    distribution: str = "lognormal"
    load_s: float = 0.0
    load_jitter: float = 0.0
    prefetch: int = 2

    def check(self, ranks: int) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: a negative or infinite number, an unknown distribution, or a rank that is not there.
        """
        for name in ("jitter", "device_spread", "load_s", "load_jitter"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError("stragglers", name, value, "must be finite and not negative")
        if self.distribution not in DISTRIBUTIONS:
            raise InputError("stragglers", "distribution", self.distribution, f"is none of {', '.join(DISTRIBUTIONS)}")
        if self.prefetch < 0:
            raise InputError("stragglers", "prefetch", self.prefetch, "must not be negative")
        for rank, factor in self.slow_ranks.items():
            if not 0 <= rank < ranks:
                raise InputError("stragglers", "slow_rank", rank, f"there are {ranks} ranks, from 0")
            if not (math.isfinite(factor) and factor > 0):
                raise InputError("stragglers", "slow_rank", factor, "must be a positive finite factor")


def factors(rng: np.random.Generator, size: int, variation: float, distribution: str) -> np.ndarray:
    """Draw factors with mean 1 and this coefficient of variation; a normal one never falls below a tenth."""
    if variation == 0.0:
        return np.ones(size)
    if distribution == "normal":
        return np.maximum(1.0 + variation * rng.standard_normal(size), 0.1)
    width = math.sqrt(math.log1p(variation**2))
    return np.exp(width * rng.standard_normal(size) - width**2 / 2)


def expected_maximum(ranks: int, variation: float, distribution: str = "normal") -> float:
    """Mean of the largest of so many independent factors: the integral of x n F(x)^(n-1) f(x) (David and Nagaraja, Order
    Statistics, section 3.1).

    >>> round(expected_maximum(2, 1.0) - 1.0, 6)  # 1 / sqrt(pi)
    0.56419
    """
    from scipy.integrate import quad
    from scipy.stats import norm

    width = math.sqrt(math.log1p(variation**2))

    def value(z: float) -> float:
        return 1.0 + variation * z if distribution == "normal" else math.exp(width * z - width**2 / 2)

    found, _ = quad(lambda z: value(z) * ranks * norm.cdf(z) ** (ranks - 1) * norm.pdf(z), -9.0, 12.0, limit=200)
    return float(found)


def _pipeline(step: StepPrediction) -> Callable[[np.ndarray], float]:
    """Seconds of one replica's pipeline, as a function of its stages' factors; the order of actions is the even one's."""
    from llmlab.simulator.training.replay import graph_of

    plan, stages = step.plan, step.stages
    if plan.pp == 1:
        alone = plan.microbatches * stages[0].total_s
        return lambda by: alone * float(by[0])
    table = order_of(plan.schedule, stages, plan.microbatches, virtual_stages=plan.virtual_stages, transfer_s=step.handover_s)
    paired = plan.schedule in PAIRED
    graph = graph_of(table, paired=paired)

    def seconds(by: np.ndarray) -> float:
        slowed = [stage.slowed(float(factor)) for stage, factor in zip(stages, by)]
        return float(graph.makespan_ns(durations_of(plan.schedule, table, slowed, step.handover_s))) / 1e9

    return seconds


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each of many steps, and what they would all take without variation.

    Attributes:
        steady_s: the step without variation.
        seconds: of each step, its waits for data among them.
        loading_s: of each step, of its wait for its batch.
        slowest_rank: of each step, a rank of the group that ended last.
    """

    steady_s: float
    seconds: np.ndarray
    loading_s: np.ndarray
    slowest_rank: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Quantiles and means."""
        shown = {f"p{q}_s": float(np.quantile(self.seconds, q / 100)) for q in (50, 90, 99)}
        ranks, counts = np.unique(self.slowest_rank, return_counts=True)
        most = int(np.argmax(counts))
        return {
            "steps": len(self.seconds),
            "steady_s": self.steady_s,
            "mean_s": float(self.seconds.mean()),
            **shown,
            "std_s": float(self.seconds.std()),
            "slowdown": float(self.seconds.mean() / self.steady_s),
            "waiting_for_ranks_s": float((self.seconds - self.loading_s).mean() - self.steady_s),
            "waiting_for_data_s": float(self.loading_s.mean()),
            "slowest_rank": int(ranks[most]),
            "slowest_rank_share": float(counts[most] / len(self.seconds)),
        }


def simulate_steps(step: StepPrediction, variation: Variation, steps: int = 200, seed: int = 0) -> StepTimes:
    """Draw so many steps of a predicted one.

    Raises:
        InputError: a setting out of range, or a schedule that has no order of actions.
    """
    plan = step.plan
    variation.check(plan.gpus)
    if steps < 1:
        raise InputError("stragglers", "steps", steps, "must be at least 1")
    rng = np.random.default_rng(seed)
    worth = _worth(rng, plan.gpus, variation)
    shape = (plan.pp, plan.dp, plan.cp * plan.tp)  # ranks as Megatron-LM numbers them
    pipeline_s = _pipeline(step)
    base = pipeline_s(np.ones(plan.pp))
    known: dict[bytes, float] = {}
    running, slowest = np.zeros(steps), np.zeros(steps, dtype=np.int64)
    for number in range(steps):
        each = worth * factors(rng, plan.gpus, variation.jitter, variation.distribution)
        stage_by_replica = each.reshape(shape).max(axis=2)
        times = np.zeros(plan.dp)
        for replica in range(plan.dp):
            key = stage_by_replica[:, replica].tobytes()
            if key not in known:
                known[key] = pipeline_s(stage_by_replica[:, replica])
            times[replica] = known[key]
        if variation.jitter:
            known.clear()
        last = int(np.argmax(times))
        running[number] = step.seconds + times[last] - base
        inside = each.reshape(shape)[:, last]
        stage, place = divmod(int(np.argmax(inside)), shape[2])
        slowest[number] = (stage * plan.dp + last) * shape[2] + place
    loads = variation.load_s * factors(rng, steps, variation.load_jitter, variation.distribution)
    waits = loading_waits(running, loads, variation.prefetch)
    return StepTimes(step.seconds, running + waits, waits, slowest)


def _worth(rng: np.random.Generator, ranks: int, variation: Variation) -> np.ndarray:
    """What each device is worth for the whole run."""
    found = factors(rng, ranks, variation.device_spread, variation.distribution)
    for rank, factor in sorted(variation.slow_ranks.items()):
        found[rank] *= factor
    return found


def first_step_factors(step: StepPrediction, variation: Variation, seed: int = 0) -> np.ndarray:
    """Factors of the first drawn step, stage by replica: what a timeline of it needs.

    Raises:
        InputError: a setting out of range.
    """
    plan = step.plan
    variation.check(plan.gpus)
    rng = np.random.default_rng(seed)
    each = _worth(rng, plan.gpus, variation) * factors(rng, plan.gpus, variation.jitter, variation.distribution)
    return np.asarray(each.reshape(plan.pp, plan.dp, plan.cp * plan.tp).max(axis=2))


def loading_waits(steps_s: Sequence[float] | np.ndarray, loads_s: Sequence[float] | np.ndarray, prefetch: int) -> np.ndarray:
    """Seconds each step waits for its batch.

    >>> loading_waits([2.0, 2.0, 2.0], [3.0, 3.0, 3.0], 1).tolist(), loading_waits([2.0, 2.0], [1.0, 1.0], 0).tolist()
    ([3.0, 1.0, 1.0], [1.0, 1.0])
    """
    waits = np.zeros(len(steps_s))
    begun: list[float] = []
    now = ready = 0.0
    for number, (length, load) in enumerate(zip(steps_s, loads_s)):
        if prefetch == 0:
            ready = now + load
        else:
            free = begun[number - prefetch] if number >= prefetch else 0.0
            ready = max(ready, free) + load
        start = max(now, ready)
        waits[number] = start - now
        begun.append(start)
        now = start + length
    return waits


def parse_slow_ranks(words: Sequence[str]) -> dict[int, float]:
    """Read `rank=factor`s.

    Raises:
        InputError: other words, or a rank named twice.
    """
    found: dict[int, float] = {}
    for word in words:
        rank, _, factor = word.partition("=")
        try:
            number, value = int(rank), float(factor)
        except ValueError:
            raise InputError("stragglers", "slow_rank", word, "give it as rank=factor") from None
        if number in found:
            raise InputError("stragglers", "slow_rank", word, "a rank appears twice")
        found[number] = value
    return found
