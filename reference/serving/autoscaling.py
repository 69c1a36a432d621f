"""Autoscaling: how many replicas should run, from what was observed (a state machine over ticks; it has no clock).

At every tick a policy sees the requests that arrived since the last tick, the unfinished ones, and the replicas that are
ready; it names the number it wants.

- reactive: desired = ceil(ready * load / target), load being unfinished requests per ready replica; unchanged while load
  lies within a tolerance of the target. This is the horizontal pod autoscaler of Kubernetes ("Algorithm details").
- predictive: Holt's linear trend (Holt 1957, doi:10.1016/j.ijforecast.2003.09.015) over the arrivals per tick, read
  `ahead` ticks in the future: desired = ceil(forecast / arrivals one replica can serve per tick).

        level' = alpha x + (1 - alpha) (level + trend)      trend' = beta (level' - level) + (1 - beta) trend

Then both are stabilized: a scale-down waits until no tick of the last `patience` wanted more (the largest wish of that window
counts), and the result lies between `least` and `most`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from llmlab.reference.op import Procedure


class Wish(Protocol):
    """A policy: what it wants now, not stabilized, not bounded."""

    def wish(self, arrived: int, unfinished: int, ready: int) -> int:
        """Replicas wanted."""


class Reactive:
    """Follow the load.

    Args:
        target: unfinished requests per replica to aim at.
        tolerance: relative deviation from the target that changes nothing.
    """

    def __init__(self, target: float, tolerance: float = 0.1) -> None:
        if not (target > 0 and 0 <= tolerance < 1):
            raise ValueError(f"{target=}, {tolerance=}: need target > 0 and 0 <= tolerance < 1")
        self.target, self.tolerance = target, tolerance

    def wish(self, arrived: int, unfinished: int, ready: int) -> int:
        """Return ready * load / target, rounded up, or `ready` while the load is near the target."""
        aim = ready * self.target
        if ready and abs(unfinished - aim) <= self.tolerance * aim:
            return ready
        return math.ceil(unfinished / self.target)


class Predictive:
    """Follow a forecast of the arrivals.

    Args:
        per_replica: arrivals per tick one replica can serve.
        ahead: ticks a new replica takes to become useful.
        alpha: weight of the newest observation in the level.
        beta: weight of the newest change in the trend.
    """

    def __init__(self, per_replica: float, ahead: float = 1.0, alpha: float = 0.5, beta: float = 0.3) -> None:
        if not (per_replica > 0 and ahead >= 0 and 0 < alpha <= 1 and 0 <= beta <= 1):
            raise ValueError(f"{per_replica=}, {ahead=}, {alpha=}, {beta=}: out of range")
        self.per_replica, self.ahead, self.alpha, self.beta = per_replica, ahead, alpha, beta
        self.level: float | None = None
        self.trend = 0.0

    def wish(self, arrived: int, unfinished: int, ready: int) -> int:
        """Return the replicas that the forecast arrivals need."""
        if self.level is None:
            self.level = float(arrived)
        else:
            before = self.level
            self.level = self.alpha * arrived + (1 - self.alpha) * (before + self.trend)
            self.trend = self.beta * (self.level - before) + (1 - self.beta) * self.trend
        forecast = max(0.0, self.level + self.ahead * self.trend)
        return math.ceil(forecast / self.per_replica - 1e-9)


class Autoscaler:
    """A policy, stabilized and bounded.

    Args:
        policy: what it wants at each tick.
        least: replicas that always run.
        most: replicas there are.
        patience: ticks a scale-down waits, at least 1.

    Raises:
        ValueError: not 0 <= least <= most, most < 1, or patience < 1.

    >>> scaler = Autoscaler(Reactive(target=4), least=1, most=8, patience=2)
    >>> [scaler.tick(0, unfinished, ready) for unfinished, ready in [(16, 1), (16, 4), (2, 4), (2, 4), (2, 1)]]
    [4, 4, 4, 1, 1]
    """

    def __init__(self, policy: Wish, *, least: int, most: int, patience: int = 1) -> None:
        if not (0 <= least <= most and most >= 1 and patience >= 1):
            raise ValueError(f"{least=}, {most=}, {patience=}: need 0 <= least <= most, most >= 1 and patience >= 1")
        self.policy, self.least, self.most = policy, least, most
        self.wishes: deque[int] = deque(maxlen=patience)

    def tick(self, arrived: int, unfinished: int, ready: int) -> int:
        """Return how many replicas should run."""
        self.wishes.append(self.policy.wish(arrived, unfinished, ready))
        return min(self.most, max(self.least, max(self.wishes)))


POLICIES: Mapping[str, type[Reactive | Predictive]] = {"reactive": Reactive, "predictive": Predictive}


def autoscaling(
    *,
    policy: str,
    options: Mapping[str, float],
    least: int,
    most: int,
    patience: int,
    arrived: Sequence[int],
    served_per_replica: int,
    start_ticks: int,
) -> list[tuple[int, int]]:
    """Play a pool of replicas tick by tick; return (wanted, unfinished) after each.

    Each ready replica finishes up to `served_per_replica` requests per tick. A replica asked for is ready `start_ticks` ticks
    later; one not wanted any more leaves at once, those still starting first.

    Raises:
        ValueError: an unknown policy or an option out of range.

    >>> autoscaling(policy="reactive", options={"target": 2}, least=1, most=3, patience=1, arrived=[2, 8, 0, 0],
    ...             served_per_replica=2, start_ticks=1)
    [(1, 2), (3, 8), (1, 2), (1, 0)]
    """
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is none of {', '.join(POLICIES)}")
    scaler = Autoscaler(POLICIES[policy](**options), least=least, most=most, patience=patience)
    ready, starting, unfinished = least, [0] * start_ticks, 0
    log = []
    for new in arrived:
        if starting:
            ready += starting.pop(0)
            starting.append(0)
        unfinished = max(0, unfinished - ready * served_per_replica) + new
        wanted = scaler.tick(new, unfinished, ready)
        coming = sum(starting)
        if wanted > ready + coming:
            if starting:
                starting[-1] += wanted - ready - coming
            else:
                ready = wanted
        else:
            surplus = ready + coming - wanted
            for place in reversed(range(len(starting))):
                less = min(surplus, starting[place])
                starting[place] -= less
                surplus -= less
            ready -= surplus
        log.append((wanted, unfinished))
    return log


def example(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a policy and up to 40 ticks of arrivals: a level, a ramp, a burst, or silence."""
    ticks = int(rng.integers(0, 41))
    ramp = np.linspace(0, rng.integers(0, 30), ticks) * (rng.random() < 0.5) + rng.integers(0, 8)
    most = int(rng.integers(1, 9))
    reactive = rng.random() < 0.5
    return {
        "policy": "reactive" if reactive else "predictive",
        "options": {"target": float(rng.integers(1, 9)), "tolerance": float(rng.choice([0.0, 0.1, 0.5]))}
        if reactive
        else {
            "per_replica": float(rng.integers(1, 9)),
            "ahead": float(rng.integers(0, 4)),
            "alpha": float(rng.choice([0.25, 0.5, 1.0])),
            "beta": float(rng.choice([0.0, 0.25, 1.0])),
        },
        "least": int(rng.integers(0, most + 1)),
        "most": most,
        "patience": int(rng.integers(1, 6)),
        "arrived": rng.poisson(ramp).tolist(),
        "served_per_replica": int(rng.integers(1, 6)),
        "start_ticks": int(rng.integers(0, 4)),
    }


AUTOSCALING = Procedure(
    reference=autoscaling, examples=example, paper="Holt 1957, doi:10.1016/j.ijforecast.2003.09.015; Kubernetes HPA"
)
