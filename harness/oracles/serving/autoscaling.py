"""The autoscaler's wishes recomputed from the whole history at every tick, in exact fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from llmlab.harness.oracle import oracle
from llmlab.reference.serving.autoscaling import AUTOSCALING


def _holt(history: Sequence[int], alpha: Fraction, beta: Fraction, ahead: Fraction) -> Fraction:
    """Forecast from the whole series by the textbook recurrence."""
    level, trend = Fraction(history[0]), Fraction(0)
    for observed in history[1:]:
        level, trend = (
            alpha * observed + (1 - alpha) * (level + trend),
            beta * (alpha * observed + (1 - alpha) * (level + trend) - level) + (1 - beta) * trend,
        )
    return max(Fraction(0), level + ahead * trend)


def _ceil(value: Fraction) -> int:
    """Round up; a billionth above a whole number is that number, as it would be in floating point."""
    return -((-(value - Fraction(1, 10**9))) // 1)


@oracle(AUTOSCALING, library="exact enumeration")
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
    given = {name: Fraction(value).limit_denominator(1000) for name, value in options.items()}
    ordered: list[int] = []  # the tick each running or starting replica is ready at
    ordered += [0] * least
    wishes: list[int] = []
    log = []
    unfinished = 0
    for now, new in enumerate(arrived):
        ready = sum(when <= now for when in ordered)
        unfinished = max(0, unfinished - ready * served_per_replica) + new
        if policy == "reactive":
            load = Fraction(unfinished)
            near = ready > 0 and abs(load / (ready * given["target"]) - 1) <= given["tolerance"]
            wishes.append(ready if near else _ceil(load / given["target"]))
        else:
            forecast = _holt(arrived[: now + 1], given["alpha"], given["beta"], given["ahead"])
            wishes.append(_ceil(forecast / given["per_replica"]))
        wanted = sorted([least, most, max(wishes[max(0, now + 1 - patience) :])])[1]
        ordered = sorted(ordered)[:wanted]
        ordered += [now + start_ticks] * (wanted - len(ordered))
        log.append((wanted, unfinished))
    return log
