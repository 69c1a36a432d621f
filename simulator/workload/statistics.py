"""Numbers that describe a workload: rate, burstiness at several time scales, lengths, shared prefixes.

Burstiness is the coefficient of variation (CV) of the gaps and the Fano factor, variance over mean of the number of arrivals
in windows of w seconds: 1 at every w for a Poisson process, growing with w where the rate itself wanders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.simulator.workload.workload import NANOSECONDS, Workload

WINDOWS_S = (1, 10, 60)
PERCENTILES = (1, 25, 50, 75, 90, 95, 99)
LONGEST_GRID_S = 60
"""Coarsest clock that `clock_grid_ns` looks for."""


def clock_grid_ns(arrival_ns: np.ndarray) -> int:
    """Step of the clock that stamped the arrivals, when it is a second or more (else 0).

    Some traces are stamped by a coarse clock: Mooncake's times lie 3 s apart. Their gaps say nothing below that step.

    >>> clock_grid_ns(np.array([0, 0, 3, 3, 3, 9, 12]) * 10**9) // 10**9
    3
    """
    distinct = np.unique(arrival_ns)
    if len(distinct) < 3 or len(distinct) > 0.9 * len(arrival_ns):
        return 0
    gaps = np.diff(distinct)
    grid = int(np.median(gaps))
    if not NANOSECONDS <= grid <= LONGEST_GRID_S * NANOSECONDS:
        return 0
    away = np.abs(gaps / grid - np.rint(gaps / grid))
    return grid if float(np.quantile(away, 0.95)) < 0.02 else 0


def spread_over_grid(workload: Workload, seed: int = 0) -> tuple[Workload, int]:
    """Spread arrivals that share a tick of a coarse clock evenly at random over the tick; returns the workload and the tick."""
    from dataclasses import replace

    grid = clock_grid_ns(workload.arrival_ns)
    if not grid:
        return workload, 0
    rng = np.random.default_rng(seed)
    ticks = workload.arrival_ns // grid
    moved = ticks * grid + rng.integers(0, grid, len(workload))
    order = np.lexsort((moved, ticks))  # within a tick the file's order is kept, so that a prefix still precedes its reuse
    return replace(workload, arrival_ns=moved[order]), grid


def fano(arrival_ns: np.ndarray, window_s: float) -> float:
    """Variance / mean of the arrivals per window, over the whole windows of the span; nan for fewer than three."""
    span = int(arrival_ns[-1] - arrival_ns[0])
    width = round(window_s * NANOSECONDS)
    count = span // width
    if count < 3:
        return float("nan")
    place = (arrival_ns - arrival_ns[0]) // width
    counts = np.bincount(place[place < count], minlength=count)
    return float(counts.var() / counts.mean())


def peak_over_mean(arrival_ns: np.ndarray, window_s: float) -> float:
    """Most arrivals in one of the windows over the mean number."""
    span = int(arrival_ns[-1] - arrival_ns[0])
    width = round(window_s * NANOSECONDS)
    if span < width:
        return float("nan")
    counts = np.bincount((arrival_ns - arrival_ns[0]) // width, minlength=span // width + 1)
    return float(counts.max() * span / width / len(arrival_ns))


def gap_cv(arrival_ns: np.ndarray) -> float:
    """Standard deviation over mean of the gaps between arrivals; nan where all arrive at once."""
    gaps = np.diff(arrival_ns).astype(float)
    return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.any() else float("nan")


@dataclass(frozen=True)
class Reuse:
    """How the prompts of a workload reuse earlier ones, under a cache that forgets nothing.

    Attributes:
        blocks: per request, how many blocks of its prompt have an identity.
        known: per request, how many of its leading blocks an earlier request had.
        root: leading blocks that nearly every request has in common.
        parent: per request, the latest earlier one that had its last known block, or -1.
    """

    blocks: np.ndarray
    known: np.ndarray
    root: int
    parent: np.ndarray

    @property
    def hit_fraction(self) -> float:
        """Known blocks over all blocks."""
        return float(self.known.sum() / max(1, self.blocks.sum()))

    @property
    def continued(self) -> np.ndarray:
        """Requests that know more than the common root."""
        return self.known > np.minimum(self.root, self.blocks)


def full_blocks(workload: Workload) -> list[np.ndarray]:
    """Identities of each prompt's full blocks; some traces name the unfinished last block too, which no cache can reuse."""
    full = workload.prompt_tokens // workload.hash_block_tokens
    return [own[:count] for own, count in zip(workload.block_hashes, full)]


COMMON = 0.9
"""A leading block is part of the root where this share of the prompts long enough for it have it."""


def reuse_of(workload: Workload) -> Reuse | None:
    """Follow every prompt's blocks; None where the workload has no prefix identities."""
    if not workload.block_hashes:
        return None
    chains = full_blocks(workload)
    blocks = np.array([len(own) for own in chains])
    root = 0
    while (longer := blocks > root).sum() > len(blocks) / 2:
        values = np.array([own[root] for own in chains if len(own) > root])
        _, counts = np.unique(values, return_counts=True)
        if counts.max() < COMMON * longer.sum():
            break
        root += 1
    last: dict[int, int] = {}
    known, parent = np.zeros(len(blocks), int), np.full(len(blocks), -1)
    for i, own in enumerate(chains):
        found = 0
        values = own.tolist()
        for value in values:
            if value not in last:
                break
            found += 1
        if found:
            known[i], parent[i] = found, last[values[found - 1]]
        for value in values:
            last[value] = i
    return Reuse(blocks, known, root, parent)


def lru_hit_fraction(workload: Workload, capacity_blocks: int) -> float:
    """Part of the prompt blocks found in a least-recently-used cache of this many blocks."""
    from collections import OrderedDict

    cache: OrderedDict[int, None] = OrderedDict()
    found = total = 0
    for own in full_blocks(workload):
        values = own.tolist()
        total += len(values)
        known = True
        for value in values:
            known = known and value in cache
            found += known
            cache[value] = None
            cache.move_to_end(value)
        while len(cache) > capacity_blocks:
            cache.popitem(last=False)
    return found / max(1, total)


def _lengths(tokens: np.ndarray) -> dict[str, float]:
    percentiles = np.percentile(tokens, PERCENTILES)
    return {
        "mean": float(tokens.mean()),
        "cv": float(tokens.std() / tokens.mean()),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, percentiles)},
        "max": float(tokens.max()),
    }


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation; 0 where one side is constant."""
    from scipy.stats import spearmanr

    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(spearmanr(left, right).statistic)


def describe(workload: Workload) -> dict[str, Any]:
    """Every statistic of a workload; None where it has no meaning. A closed loop has no arrivals of its own."""
    times = workload.arrival_ns
    open_loop = not workload.clients and workload.span_s > 0
    found: dict[str, Any] = {
        "requests": len(workload),
        "span_s": workload.span_s,
        "rate_per_s": workload.rate_per_s if open_loop else None,
        "gap_cv": gap_cv(times) if open_loop else None,
        "clock_grid_s": clock_grid_ns(times) / NANOSECONDS if open_loop else None,
        **{f"fano_{w}s": fano(times, w) if open_loop else None for w in WINDOWS_S},
        **{f"peak_over_mean_{w}s": peak_over_mean(times, w) if open_loop else None for w in WINDOWS_S},
        "prompt_tokens": _lengths(workload.prompt_tokens),
        "output_tokens": _lengths(workload.output_tokens),
        "length_rank_correlation": spearman(workload.prompt_tokens, workload.output_tokens),
    }
    if (reuse := reuse_of(workload)) is not None:
        found["prefix"] = {
            "block_tokens": workload.hash_block_tokens,
            "known_fraction": reuse.hit_fraction,
            "root_blocks": reuse.root,
            "continued_fraction": float(reuse.continued.mean()),
        }
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in found.items()}
