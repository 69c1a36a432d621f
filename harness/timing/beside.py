"""What the machine reaches right beside a timing: memory bandwidth on a working set of the same size, and arithmetic.

The memory bandwidth of a shared machine drifts (17 to 33 GB/s within an hour were seen on a virtual machine of 2 cores), so
a fraction of what it reached minutes ago says little. `Beside` measures for some tens of milliseconds before and after the
implementations of a case. The better of both is the machine's limit there, and their distance tells how much it drifted
meanwhile. Nobody shares a GPU's memory: its peaks are those measured once. Narrow floats have no loop here: their arithmetic
is the peak of the libraries' products, or float32's where that is more, for they can be widened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from llmlab.harness.machine import describe
from llmlab.harness.roofline import Peaks, limit
from llmlab.harness.timing.peaks import CPU_WORKING_SETS, numba_works

DRIFTED = 0.15
"""Rates before and after a case that differ by more than this make its fraction of the limit doubtful."""

LOOPS = ("float64", "float32")
"""Dtypes of the loop of fused multiply-adds."""

PROBE_S = 0.02
"""Each loop is repeated for about this long, and at least twice after a first call."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Rates:
    """Bytes per second of memory and FLOPs per second of arithmetic."""

    bandwidth: float
    arithmetic: float


@dataclass(frozen=True)
class Reached:
    """The better rates of before and after a case.

    Attributes:
        rates: the better of both.
        bandwidth_drift: (better - worse) / better bandwidth, None where it was not measured.
        arithmetic_drift: the same of arithmetic.
    """

    rates: Rates
    bandwidth_drift: float | None = None
    arithmetic_drift: float | None = None

    def drift(self, flops: float, moved_bytes: float) -> float | None:
        """Drift of the rate that limits this work."""
        bound = limit(flops, moved_bytes, self.rates.bandwidth, self.rates.arithmetic).bound
        return self.bandwidth_drift if bound == "memory" else self.arithmetic_drift


def better(before: Rates, after: Rates) -> Reached:
    """Take the better of both, rate by rate.

    >>> better(Rates(10.0, 4.0), Rates(8.0, 4.0))
    Reached(rates=Rates(bandwidth=10.0, arithmetic=4.0), bandwidth_drift=0.2, arithmetic_drift=0.0)
    """

    def one(first: float, second: float) -> tuple[float, float]:
        high, low = max(first, second), min(first, second)
        return high, round(1 - low / high, 6)

    bandwidth, bandwidth_drift = one(before.bandwidth, after.bandwidth)
    arithmetic, arithmetic_drift = one(before.arithmetic, after.arithmetic)
    return Reached(Rates(bandwidth, arithmetic), bandwidth_drift, arithmetic_drift)


class Stored:
    """The peaks that were measured once, for every case: what a case is given where nothing is measured beside it."""

    def __init__(self, peaks: Peaks, moved_bytes: float, dtype: str) -> None:
        self.rates = Rates(peaks.bandwidth_at(moved_bytes), peaks.flops[dtype])

    def after(self) -> Reached:
        """The stored rates."""
        return Reached(self.rates)


class Measured:
    """Measures now, and once more at `after`.

    Args:
        peaks: of the same device; their arithmetic counts in a dtype that has no loop.
        moved_bytes: bytes of the work that is timed in between.
        dtype: its dtype.
    """

    def __init__(self, peaks: Peaks, moved_bytes: float, dtype: str, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.peaks, self.moved_bytes, self.dtype, self.clock = peaks, moved_bytes, dtype, clock
        self.before = self.now()

    def now(self) -> Rates:
        """What the loops reach at this moment."""
        bandwidth = max(best_rate(call, amount, clock=self.clock) for call, amount in streams(self.moved_bytes))
        call, amount = arithmetic(self.dtype if self.dtype == "float64" else "float32")
        reached = best_rate(call, amount, clock=self.clock) if call is not None else 0.0
        known = self.peaks.flops[self.dtype] if call is None or self.dtype not in LOOPS else 0.0
        return Rates(bandwidth, max(reached, known))

    def after(self) -> Reached:
        """The better of before and now."""
        return better(self.before, self.now())


Beside = Stored | Measured
Making = Callable[[Peaks, float, str], Beside]


def measured(peaks: Peaks, moved_bytes: float, dtype: str) -> Beside:
    """Measure beside a case on a processor; take the stored peaks of a GPU."""
    return Measured(peaks, moved_bytes, dtype) if peaks.device == "cpu" else Stored(peaks, moved_bytes, dtype)


def best_rate(call: Call, amount: float, *, budget_s: float = PROBE_S, clock: Callable[[], float] = time.perf_counter) -> float:
    """Amount of work per second in the best of some calls, the first one left out."""
    call()
    best_s, spent, calls = math.inf, 0.0, 0
    while calls < 2 or spent < budget_s:
        started = clock()
        call()
        one = max(clock() - started, 1e-9)
        best_s, spent, calls = min(best_s, one), spent + one, calls + 1
    return amount / best_s


@lru_cache(maxsize=1)
def _block(size: int) -> np.ndarray:
    """Memory that the streams share, held from before a case to after it, so that no probe touches new pages."""
    from llmlab.harness.timing import loops

    return loops.block(size)


def release() -> None:
    """Give the streams' memory back."""
    _block.cache_clear()


def streams(moved_bytes: float) -> list[tuple[Call, float]]:
    """(call, bytes it moves) of the loops that stream a working set of this size; within the sizes peaks are measured at."""
    size = int(min(max(moved_bytes, CPU_WORKING_SETS[0]), CPU_WORKING_SETS[-1]))
    if not numba_works():
        source = np.ones(size // 16)
        target = np.empty_like(source)
        return [(lambda: np.copyto(target, source), 2.0 * source.nbytes)]
    from llmlab.harness.timing import loops

    threads = describe().threads
    loops.use_threads(threads)
    block_N = _block(next(one for one in CPU_WORKING_SETS if one >= size))
    made = [make(size, threads, block_N) for make in (loops.reading, loops.triad)]
    return [(call, moved) for call, _, moved in made]


def arithmetic(dtype: str) -> tuple[Call | None, float]:
    """(call, FLOPs it does) of fused multiply-adds in registers; None without a compiler."""
    if not numba_works():
        return None, 0.0
    from llmlab.harness.timing import loops

    call, flops, _ = loops.fused(dtype, describe().threads)
    return call, flops
