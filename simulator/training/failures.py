"""What failures and checkpoints leave of a long run: the best interval between checkpoints, and goodput.

Young (1974) and Daly (2006, Future Generation Computer Systems 22(3), eq. 20): with checkpoints of cost C and a mean time
between failures M, work in pieces of sqrt(2 C M) loses least. Units: seconds.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError


def young_daly_s(checkpoint_s: float, failures_apart_s: float) -> float:
    """Seconds of work between two checkpoints.

    >>> young_daly_s(50.0, 10000.0)
    1000.0
    """
    _check(checkpoint_s=checkpoint_s, failures_apart_s=failures_apart_s)
    return math.sqrt(2.0 * checkpoint_s * failures_apart_s)


def _check(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError("failures", name, value, "must be a positive finite number of seconds")


@dataclass(frozen=True)
class Goodput:
    """Part of the time that becomes progress, and where the rest goes; the four add up to 1."""

    interval_s: float
    useful: float
    checkpoint: float
    lost_work: float
    restart: float


def goodput(
    checkpoint_s: float,
    failures_apart_s: float,
    restart_s: float,
    interval_s: float | None = None,
    *,
    restarts_fail: bool = False,
) -> Goodput:
    """Expected shares with failures at random (exponential) and a checkpoint after every `interval_s` of work.

    A piece of work and its checkpoint take interval + checkpoint seconds; a failure throws away what was done of it and
    costs a restart: the expected time of a piece is (M + R) (exp((T + C) / M) - 1), and where a restart can fail and begin
    anew M exp(R / M) (exp((T + C) / M) - 1) (Daly 2006, eq. 13).

    Args:
        checkpoint_s: time a checkpoint stops training for.
        failures_apart_s: mean time between failures of the whole job.
        restart_s: from a failure until training goes on.
        interval_s: work between checkpoints; the Young-Daly interval where None.
        restarts_fail: whether failures strike restarts too.

    Raises:
        InputError: a time is not positive.

    >>> one = goodput(60.0, 3 * 3600.0, 600.0)
    >>> round(one.useful, 3), round(one.useful + one.checkpoint + one.lost_work + one.restart, 6)
    (0.851, 1.0)
    """
    interval = young_daly_s(checkpoint_s, failures_apart_s) if interval_s is None else interval_s
    _check(checkpoint_s=checkpoint_s, failures_apart_s=failures_apart_s, restart_s=restart_s, interval_s=interval)
    piece = interval + checkpoint_s
    failures = math.expm1(piece / failures_apart_s)
    restarting = failures_apart_s * math.expm1(restart_s / failures_apart_s) if restarts_fail else restart_s
    whole = (failures_apart_s + restarting) * failures
    useful, saving, restart = interval / whole, checkpoint_s / whole, restarting * failures / whole
    return Goodput(interval, useful, saving, max(0.0, 1.0 - useful - saving - restart), restart)


def simulate_goodput(
    checkpoint_s: float,
    failures_apart_s: float,
    restart_s: float,
    interval_s: float,
    pieces: int,
    rng: np.random.Generator,
    *,
    restarts_fail: bool = False,
) -> Goodput:
    """The shares of one run of so many pieces, failures drawn: a trainer that saves, and failures that interrupt it."""
    import simpy

    _check(checkpoint_s=checkpoint_s, failures_apart_s=failures_apart_s, restart_s=restart_s, interval_s=interval_s)
    env = simpy.Environment()
    ns = {"work": round(interval_s * 1e9), "save": round(checkpoint_s * 1e9), "restart": round(restart_s * 1e9)}
    spent = {"lost": 0.0, "restart": 0.0}
    exposed = True

    def train() -> Generator[Any, Any, None]:
        nonlocal exposed
        done = 0
        while done < pieces:
            since = env.now
            try:
                yield env.timeout(ns["work"])
                yield env.timeout(ns["save"])
                done += 1
            except simpy.Interrupt:
                spent["lost"] += env.now - since
                exposed = restarts_fail
                since = env.now
                left = ns["restart"]
                while left:
                    try:
                        yield env.timeout(left)
                        left = 0
                    except simpy.Interrupt:
                        left = ns["restart"]
                exposed = True
                spent["restart"] += env.now - since

    trainer = env.process(train())

    def fail() -> Generator[Any, Any, None]:
        while trainer.is_alive:
            yield env.timeout(round(rng.exponential(failures_apart_s) * 1e9))
            if trainer.is_alive and exposed:  # without memory: a failure that finds nobody needs no successor drawn anew
                trainer.interrupt()

    env.process(fail())
    env.run(until=trainer)
    whole = int(env.now)
    work, save = pieces * ns["work"], pieces * ns["save"]
    return Goodput(interval_s, work / whole, save / whole, spent["lost"] / whole, spent["restart"] / whole)


def checkpoint_seconds(parameters: float, bytes_per_s: float, *, bytes_per_weight: float = 14.0) -> float:
    """Seconds to write weights, master weights and moments of a model to storage of this bandwidth.

    >>> checkpoint_seconds(1e9, 14e9)
    1.0
    """
    _check(parameters=parameters, bytes_per_s=bytes_per_s)
    return parameters * bytes_per_weight / bytes_per_s


def long_run(
    parameters: float, gpus: int, *, gpu_hours_apart: float, checkpoint_bytes_per_s: float, restart_s: float
) -> dict[str, float]:
    """What failures leave of a job: a device fails every `gpu_hours_apart` hours on average, and any failure stops all.

    >>> shares = long_run(1e9, 1000, gpu_hours_apart=5e4, checkpoint_bytes_per_s=1e10, restart_s=600.0)
    >>> shares["failures_apart_s"], round(shares["useful"], 3)
    (180000.0, 0.993)
    """
    _check(gpu_hours_apart=gpu_hours_apart)
    apart = gpu_hours_apart * 3600.0 / gpus
    saved = checkpoint_seconds(parameters, checkpoint_bytes_per_s)
    shares = goodput(saved, apart, restart_s)
    return {
        "failures_apart_s": apart,
        "checkpoint_s": saved,
        "interval_s": shares.interval_s,
        "useful": shares.useful,
        "checkpoint": shares.checkpoint,
        "lost_work": shares.lost_work,
        "restart": shares.restart,
    }
