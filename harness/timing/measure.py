"""Timing one call honestly: warm-up, synchronisation, rounds until stable, median, best and spread, and a quiet-machine gate.

How measurements lie on shared machines, and what is done here:

- Fresh large outputs measure page faults, not kernels: a kernel with `out=` then "beats" a peer that makes its output. Nobody
  is given `out=` here, and nobody pays for fresh pages: `warm_allocator` makes glibc keep freed pages in the process (no
  mmap, no trimming), `reserve_pages` touches enough of them right before each implementation, warm-up goes on until calls
  fault no more, a round that still faults (an output that moved within the heap) is taken again, and page faults per call are
  recorded so that the rest is visible. Measured with outputs of 134 MB, 32,768 pages: torch's softmax and rms_norm fault 0 to
  3 times a call, under 0.01 % of the bytes they move; so they have the buffers that `out=` would give them. Outside Python the
  same setting is GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184.
- Neighbours destroy medians long before they destroy the best round. Both are kept; `watch` measures how much of the
  machine others used meanwhile, and a timing taken then is marked noisy.
- A call shorter than the clock's noise is repeated inside each round.
- Repeated calls find their inputs in the caches; the roofline uses the bandwidth of the same working set.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SHORTEST_ROUND_S = 200e-6
"""A round lasts at least this long, so that the clock and the loop around the call do not count."""

STABLE = 0.01
"""Rounds stop early when the standard error of the median is below this fraction of it."""

FEW_FAULTS = 32
"""A warm call touches fewer new pages than this."""

RETAKEN = 3
"""Rounds that fault are taken again at most this often; a call that always faults is timed with its faults."""

NOISY_SPREAD = 0.2
NOISY_OTHERS = 0.1
NOISY_SPIN = 0.25


@dataclass(frozen=True)
class Quiet:
    """How quiet the machine was.

    Attributes:
        others: fraction of the machine's processor time that other processes (or a hypervisor) used meanwhile.
        spin: (90th percentile - best) / best of a fixed piece of arithmetic run many times.
        load: one-minute load average per hardware thread, for the record; it lags, so it decides nothing.
    """

    others: float
    spin: float
    load: float

    @property
    def noisy(self) -> bool:
        """True when timings taken meanwhile should not be believed."""
        return self.others > NOISY_OTHERS or self.spin > NOISY_SPIN


@dataclass(frozen=True)
class Timing:
    """Seconds per call over rounds.

    Attributes:
        median_s: the middle round.
        best_s: the fastest round; what an undisturbed machine does.
        lower_s: first quartile.
        upper_s: third quartile.
        rounds: rounds measured.
        calls: calls per round.
        page_faults: minor page faults per call.
        noisy: the rounds spread too much, or the machine was not quiet.
    """

    median_s: float
    best_s: float
    lower_s: float
    upper_s: float
    rounds: int
    calls: int
    page_faults: float = 0.0
    noisy: bool = False

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        return (self.upper_s - self.lower_s) / self.median_s


def summarize(rounds_s: Sequence[float], calls: int = 1, *, page_faults: float = 0.0, noisy: bool = False) -> Timing:
    """Median, best and quartiles of rounds (seconds per call each).

    Raises:
        ValueError: no rounds, or a round that is not a positive time.

    >>> timing = summarize([1.0, 1.1, 1.2, 5.0, 1.0])
    >>> timing.best_s, timing.median_s, timing.noisy
    (1.0, 1.1, False)
    >>> summarize([1.0, 2.0, 3.0, 4.0, 5.0]).noisy
    True
    """
    if not rounds_s or min(rounds_s) <= 0 or not all(map(math.isfinite, rounds_s)):
        raise ValueError(f"rounds={list(rounds_s)[:5]}: need at least one positive time")
    ordered = sorted(rounds_s)
    lower, middle, upper = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    spread_noisy = len(ordered) >= 5 and (upper - lower) > NOISY_SPREAD * middle
    return Timing(middle, ordered[0], lower, upper, len(ordered), calls, page_faults, noisy or spread_noisy)


def measure(
    call: Callable[[], Any],
    *,
    device: str = "cpu",
    budget_s: float = 1.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `call` on a device until the median is stable or the budget is used up.

    The budget counts the measured rounds; the first call (compilation) and the warm-up come on top. A call that alone
    exceeds the budget is measured once more after its first call, and that is its only round.
    """
    synchronize = synchronizer(device)
    calls, estimate_s = warm_up(call, device=device, budget_s=budget_s, clock=clock)
    if estimate_s > budget_s:
        min_rounds = 1
    timer = _cuda_round if device == "cuda" else _host_round
    rounds_s: list[float] = []
    faults, retaken = 0, 0
    with watch(spins=0) as quiet:
        started = clock()
        while len(rounds_s) < max_rounds:
            before = minor_faults()
            round_s, fresh = timer(call, calls, clock), minor_faults() - before
            spent = clock() - started
            if fresh > FEW_FAULTS * calls and retaken < RETAKEN and spent < max(4 * budget_s, 1.0):
                retaken += 1
                continue
            rounds_s.append(round_s)
            faults += fresh
            if len(rounds_s) >= min_rounds and (spent >= budget_s or is_stable(rounds_s)):
                break
            if spent >= 4 * budget_s:  # many times slower than the estimate: a neighbour came
                break
        synchronize()
    noisy = quiet[0].others > NOISY_OTHERS if quiet else False
    return summarize(rounds_s, calls, page_faults=faults / (len(rounds_s) * calls), noisy=noisy)


def warm_up(
    call: Callable[[], Any], *, device: str = "cpu", budget_s: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float]:
    """Compile, fill caches and allocator, and return (calls per round, seconds per call, roughly)."""
    synchronize = synchronizer(device)
    started = clock()
    call()
    synchronize()
    first_s = clock() - started
    estimate_s, spent, calm = math.inf, 0.0, 0
    for repeat in range(100):
        faults, started = minor_faults(), clock()
        call()
        synchronize()
        one = max(clock() - started, 1e-9)
        estimate_s, spent = min(estimate_s, one), spent + one
        calm = calm + 1 if minor_faults() - faults < FEW_FAULTS else 0
        settled = calm >= 3 or repeat >= 15  # aligned allocations move through the heap for some calls until they fit
        if (settled and spent > 0.1 * budget_s) or spent > 2 * budget_s or first_s + spent > 5 * budget_s:
            break
    return max(1, math.ceil(SHORTEST_ROUND_S / estimate_s)), estimate_s


def is_stable(rounds_s: Sequence[float]) -> bool:
    """True when the median of these rounds would hardly move with more of them.

    >>> is_stable([1.0] * 10), is_stable([1.0, 2.0] * 5)
    (True, False)
    """
    if len(rounds_s) < 10:
        return False
    lower, middle, upper = statistics.quantiles(rounds_s, n=4, method="inclusive")
    deviation = (upper - lower) / 1.349  # of a normal distribution with these quartiles
    return 1.2533 * deviation / math.sqrt(len(rounds_s)) < STABLE * middle


def synchronizer(device: str) -> Callable[[], None]:
    """What waits for the device to finish: nothing on a CPU."""
    if device != "cuda":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _host_round(call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        call()
    return (clock() - started) / calls


def _cuda_round(call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    """Device time between two events, so that the launches of one call overlap the work of the one before."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end) / 1e3 / calls, 1e-9)


def minor_faults() -> int:
    """Minor page faults of this process so far; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextmanager
def warm_allocator() -> Iterator[bool]:
    """Let glibc keep freed pages in the process, so that fresh outputs reuse them; yields False where it cannot be told to.

    Restores glibc's own settings and returns the pages to the system at the end.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of <malloc.h>
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    told = libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1) and libc.mallopt(top_pad, 64 << 20)
    try:
        yield bool(told)
    finally:
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(trim_threshold, 128 << 10)
        libc.mallopt(top_pad, 128 << 10)
        libc.malloc_trim(0)


def reserve_pages(size: int) -> None:
    """Touch and free this many bytes, so that outputs find pages already in the process (inside `warm_allocator`)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
        block = libc.malloc(size)
        if block:
            ctypes.memset(block, 0, size)
            libc.free(block)


def give_back_pages() -> None:
    """Return freed memory to the system between operators, so that one large shape does not starve the neighbours."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def watch(spins: int = 40, own: Callable[[], float] | None = None) -> Iterator[list[Quiet]]:
    """Measure how quiet the machine is while the block runs; the list holds one `Quiet` afterwards.

    `own` says how many processor seconds are ours so far: this process' where not given, or `family_seconds`.

    >>> with watch(spins=2) as quiet:
    ...     _ = sum(range(10))
    >>> quiet[0].others >= 0
    True
    """
    result: list[Quiet] = []
    spin_before = spin_times(spins // 2)
    own = own or _own_seconds
    busy_before, own_before, started = _busy_seconds(), own(), time.perf_counter()
    yield result
    elapsed = time.perf_counter() - started
    others = others_fraction(_busy_seconds() - busy_before, own() - own_before, elapsed, os.cpu_count() or 1, _TICK_S)
    result.append(Quiet(others, spin_variation(spin_before + spin_times(spins // 2)), _load()))


def wait_until_quiet(limit_s: float, *, window_s: float = 0.3, sleep: Callable[[float], None] = time.sleep) -> Quiet:
    """Look at the machine again and again until it is quiet or the limit has passed; return the last look."""
    deadline = time.perf_counter() + limit_s
    while True:
        with watch() as quiet:
            sleep(window_s)
        if not quiet[0].noisy or time.perf_counter() >= deadline:
            return quiet[0]


_TICK_S = 0.01
"""Resolution of the system's processor accounting."""


def others_fraction(busy_s: float, own_s: float, elapsed_s: float, processors: int, tick_s: float = 0.0) -> float:
    """Share of all processors that was busy with somebody else's work; windows too short for the accounting count as 0.

    >>> others_fraction(busy_s=3.0, own_s=2.0, elapsed_s=2.0, processors=2)
    0.25
    """
    if elapsed_s <= 5 * tick_s:
        return 0.0
    return max(0.0, busy_s - own_s - 2 * tick_s) / (elapsed_s * processors)


def spin_times(repeats: int) -> list[float]:
    """Seconds of a fixed piece of interpreter arithmetic, repeated."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        total = 0
        for i in range(10_000):
            total += i
        times.append(time.perf_counter() - started)
    return times


def spin_variation(times: Sequence[float]) -> float:
    """(90th percentile - best) / best; 0 for fewer than ten repeats.

    >>> round(spin_variation([1.0] * 8 + [2.0] * 4), 6)
    1.0
    """
    if len(times) < 10:
        return 0.0
    ordered = sorted(times)
    return ordered[int(0.9 * (len(ordered) - 1))] / ordered[0] - 1


def _busy_seconds() -> float:
    """Processor seconds used by anybody, time stolen by a hypervisor included; only our own where nobody can tell."""
    if importlib.util.find_spec("psutil") is None:
        return _own_seconds()
    import psutil

    spent = psutil.cpu_times()
    return spent.user + spent.system + sum(getattr(spent, name, 0.0) for name in ("nice", "irq", "softirq", "steal"))


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def family_seconds() -> float:
    """Processor seconds of this process and of every living process that it started, directly or not."""
    if importlib.util.find_spec("psutil") is None:
        return _own_seconds()
    import psutil

    total = _own_seconds()
    for child in psutil.Process().children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.Error:  # it just ended
            continue
        total += spent.user + spent.system
    return total


def _load() -> float:
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
