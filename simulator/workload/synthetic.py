"""Synthetic arrivals, lengths and shared prefixes. Units: integer nanoseconds and tokens.

Arrival processes return sorted `arrival_ns`; the first request of the random ones comes after one gap, that of the constant
rate at time 0. Lengths are whole numbers of at least 1.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from llmlab.simulator.workload.workload import NANOSECONDS


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive")


def constant(count: int, rate_per_s: float) -> np.ndarray:
    """Arrivals at equal distances.

    Raises:
        ValueError: rate not positive.

    >>> constant(3, 4.0).tolist()
    [0, 250000000, 500000000]
    """
    _positive(rate_per_s=rate_per_s)
    return np.rint(np.arange(count) * (NANOSECONDS / rate_per_s)).astype(np.int64)


def poisson(count: int, rate_per_s: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals with exponential gaps.

    Raises:
        ValueError: rate not positive.
    """
    _positive(rate_per_s=rate_per_s)
    return np.rint(np.cumsum(rng.exponential(NANOSECONDS / rate_per_s, count))).astype(np.int64)


def gamma(count: int, rate_per_s: float, cv: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals with Gamma gaps of coefficient of variation `cv`: 1 is Poisson, above 1 is bursty.

    Raises:
        ValueError: rate or cv not positive.
    """
    _positive(rate_per_s=rate_per_s, cv=cv)
    shape = cv**-2
    return np.rint(np.cumsum(rng.gamma(shape, NANOSECONDS / rate_per_s / shape, count))).astype(np.int64)


SWING_STEPS = 8
"""Grid points per correlation time of the fastest swing."""


def gamma_gaps(uniforms: np.ndarray, cv: float) -> np.ndarray:
    """Gamma gaps of mean 1 and this coefficient of variation, from uniform numbers: the same numbers move smoothly with cv."""
    from scipy.stats import gamma as gamma_law

    shape = max(cv, 1e-3) ** -2.0
    return np.asarray(gamma_law.ppf(uniforms, shape)) / shape


def swinging_rate(
    span_s: float, swings: Sequence[tuple[float, float]], normals: Callable[[int], np.ndarray]
) -> tuple[float, np.ndarray]:
    """Relative arrival rate on a time grid: exp of a sum of Ornstein-Uhlenbeck processes, mean 1.

    Args:
        span_s: how long.
        swings: (standard deviation of the log-rate, correlation time in seconds) of each process.
        normals: returns that many standard normal numbers.

    Returns:
        Grid step in seconds and the rate in each step.
    """
    from scipy.signal import lfilter

    step_s = min(seconds for _, seconds in swings) / SWING_STEPS
    count = max(1, math.ceil(span_s / step_s))
    log_rate = np.zeros(count)
    for amplitude, seconds in swings:
        keep = math.exp(-step_s / seconds)
        noise = normals(count)
        noise[1:] *= math.sqrt(1.0 - keep * keep)
        log_rate += amplitude * np.asarray(lfilter([1.0], [1.0, -keep], noise)) - 0.5 * amplitude * amplitude
    return step_s, np.exp(log_rate)


def modulated(
    count: int, rate_per_s: float, cv: float, swings: Sequence[tuple[float, float]], rng: np.random.Generator
) -> np.ndarray:
    """Gamma gaps whose rate wanders: a doubly stochastic process (Cox 1955) with log-normal rate.

    Args:
        count: arrivals.
        rate_per_s: mean rate.
        cv: coefficient of variation of the gaps at constant rate.
        swings: (standard deviation of the log-rate, correlation time in seconds), one per time scale.
        rng: of everything.

    Raises:
        ValueError: rate, cv or a correlation time not positive, or an amplitude negative.
    """
    _positive(rate_per_s=rate_per_s, cv=cv)
    for amplitude, seconds in swings:
        _positive(swing_s=seconds)
        if not 0 <= amplitude <= 5:
            raise ValueError(f"swing={amplitude} must lie in 0..5")
    work = np.cumsum(gamma_gaps(rng.random(count), cv))  # arrivals in a time in which the rate is 1
    if not swings:
        return np.rint(work * (NANOSECONDS / rate_per_s)).astype(np.int64)
    step_s = min(seconds for _, seconds in swings) / SWING_STEPS
    done = np.zeros(1)
    while done[-1] < work[-1]:
        span_s = 1.2 * (work[-1] - done[-1]) / rate_per_s + 10 * step_s
        step_s, rate = swinging_rate(span_s, swings, rng.standard_normal)
        done = np.concatenate((done, done[-1] + np.cumsum(rate) * step_s * rate_per_s))
    seconds = np.interp(work, done, np.arange(len(done)) * step_s)
    return np.rint(seconds * NANOSECONDS).astype(np.int64)


def at_once(count: int) -> np.ndarray:
    """Everything at time 0: a burst, an offline job, or a closed loop, whose clients decide."""
    return np.zeros(count, dtype=np.int64)


def fixed(count: int, tokens: int) -> np.ndarray:
    """One length for all.

    Raises:
        ValueError: below 1.
    """
    if tokens < 1:
        raise ValueError(f"tokens={tokens} < 1")
    return np.full(count, tokens, dtype=np.int64)


def uniform(count: int, low: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """Every length from low to high, both included, equally often.

    Raises:
        ValueError: not 1 <= low <= high.
    """
    if not 1 <= low <= high:
        raise ValueError(f"low={low}, high={high}: need 1 <= low <= high")
    return rng.integers(low, high + 1, count)


def lognormal(
    count: int, mean: float, cv: float, rng: np.random.Generator, *, low: int = 1, high: int = 2**31 - 1
) -> np.ndarray:
    """Log-normal lengths with this mean and coefficient of variation before they are rounded and clipped to low..high.

    Raises:
        ValueError: mean or cv not positive, or not 1 <= low <= high.
    """
    _positive(mean=mean, cv=cv)
    if not 1 <= low <= high:
        raise ValueError(f"low={low}, high={high}: need 1 <= low <= high")
    variance = np.log1p(cv**2)
    drawn = rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def from_quantiles(uniforms: np.ndarray, at: Sequence[float], tokens: Sequence[float]) -> np.ndarray:
    """Lengths whose quantiles at `at` are `tokens`, straight lines between; `at` runs from 0 to 1.

    Raises:
        ValueError: not the same number of both, not ascending, not from 0 to 1, or a length below 1.

    >>> from_quantiles(np.array([0.0, 0.25, 1.0]), [0, 0.5, 1], [10, 20, 100]).tolist()
    [10, 15, 100]
    """
    if len(at) != len(tokens) or len(at) < 2:
        raise ValueError(f"{len(at)} quantiles and {len(tokens)} lengths: need the same number, at least 2")
    if at[0] != 0 or at[-1] != 1 or (np.diff(at) <= 0).any():
        raise ValueError("quantiles must ascend from 0 to 1")
    if (np.diff(tokens) < 0).any() or tokens[0] < 1:
        raise ValueError("lengths at the quantiles must ascend from at least 1")
    return np.rint(np.interp(uniforms, at, tokens)).astype(np.int64)


def correlated_uniforms(count: int, rank_correlation: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of uniform numbers with this rank correlation (Gaussian copula: r = 2 sin(pi rho / 6)).

    Raises:
        ValueError: not within -1..1.
    """
    from scipy.special import ndtr

    if not -1 <= rank_correlation <= 1:
        raise ValueError(f"rank_correlation={rank_correlation} must lie in -1..1")
    linear = 2.0 * math.sin(math.pi * rank_correlation / 6.0)
    left = rng.standard_normal(count)
    right = linear * left + math.sqrt(max(0.0, 1.0 - linear * linear)) * rng.standard_normal(count)
    return ndtr(left), ndtr(right)


def empirical(count: int, prompt_tokens: np.ndarray, output_tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw (prompt, output) pairs with replacement from measured ones; returns an array of shape (count, 2)."""
    drawn = rng.integers(0, len(prompt_tokens), count)
    return np.stack([prompt_tokens[drawn], output_tokens[drawn]], axis=1)


def shared_prompts(
    prompt_tokens: np.ndarray, groups: int, prefix_tokens: int, block_tokens: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, ...]:
    """Block identities when request i starts with one of `groups` system prompts of `prefix_tokens` tokens.

    Requests take the groups in turn, or at random where `rng` is given. Only blocks that lie whole inside the system prompt
    are shared; every other block is its own.

    Raises:
        ValueError: a count below 1.
    """
    _positive(groups=groups, prefix_tokens=prefix_tokens, block_tokens=block_tokens)
    count = len(prompt_tokens)
    group = rng.integers(0, groups, count) if rng is not None else np.arange(count) % groups
    full = prompt_tokens // block_tokens
    shared = np.minimum(prefix_tokens // block_tokens, full)
    most = prefix_tokens // block_tokens
    own_start = groups * most + np.concatenate(([0], np.cumsum(full - shared)[:-1]))
    return tuple(
        np.concatenate((group[i] * most + np.arange(shared[i]), own_start[i] + np.arange(full[i] - shared[i])))
        for i in range(count)
    )


def cyclic_prompts(
    prompt_tokens: np.ndarray, distinct: int, groups: int, prefix_tokens: int, block_tokens: int
) -> tuple[np.ndarray, ...]:
    """Block identities when requests cycle through `distinct` whole prompts: request i sends prompt i mod `distinct` again.

    Prompt p starts with system prompt p mod `groups`, `prefix_tokens` long (0: nothing in common).

    Raises:
        ValueError: a count below 1, or repeats of one prompt that differ in length.
    """
    _positive(distinct=distinct, groups=groups, block_tokens=block_tokens)
    lengths = prompt_tokens[:distinct]
    again = lengths[np.arange(len(prompt_tokens)) % distinct]
    if (again != prompt_tokens).any():
        row = int(np.argmax(again != prompt_tokens))
        raise ValueError(f"request {row} repeats a prompt of {again[row]} tokens with {prompt_tokens[row]} tokens")
    if prefix_tokens >= block_tokens:
        prompts = shared_prompts(lengths, groups, prefix_tokens, block_tokens)
    else:
        full = lengths // block_tokens
        start = np.concatenate(([0], np.cumsum(full)[:-1]))
        prompts = tuple(start[i] + np.arange(full[i]) for i in range(len(lengths)))
    return tuple(prompts[i % distinct] for i in range(len(prompt_tokens)))


NEIGHBOURS = 64
"""Requests looked at on either side of the wanted one within a class of prompt lengths."""


class _Earlier:
    """Earlier requests by length class, to find one long enough near a wanted place."""

    def __init__(self) -> None:
        self.classes: dict[int, list[int]] = {}
        self.blocks: list[int] = []

    def add(self, blocks: int) -> None:
        """Append the next request."""
        self.classes.setdefault(blocks.bit_length(), []).append(len(self.blocks))
        self.blocks.append(blocks)

    def near(self, place: int, least: int) -> int | None:
        """Number of the request with at least `least` blocks that is nearest to `place`, as far as it is looked for."""
        best: int | None = None
        for size, members in self.classes.items():
            if size < least.bit_length():
                continue
            middle = bisect_left(members, place)
            reach = NEIGHBOURS if size == least.bit_length() else 1
            for member in members[max(0, middle - reach) : middle + reach]:
                if self.blocks[member] >= least and (best is None or abs(member - place) < abs(best - place)):
                    best = member
        return best


def reused_prompts(
    prompt_tokens: np.ndarray,
    block_tokens: int,
    *,
    root_tokens: int,
    continued: float,
    depth: tuple[Sequence[float], Sequence[float]],
    distance: tuple[Sequence[float], Sequence[float]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """Block identities when prompts continue earlier ones, as turns of a conversation do.

    Every prompt starts with the same `root_tokens`. A part `continued` of the requests repeats, beyond that, a share of its own
    prompt from an earlier one some requests back.

    Args:
        prompt_tokens: lengths.
        block_tokens: tokens per identity.
        root_tokens: common to all.
        continued: part of the requests that continue another, 0..1.
        depth: quantiles of the share of a prompt beyond the root that is repeated: (at, share in 0..1).
        distance: quantiles of how many requests back the other one lies: (at, requests).
        rng: of everything.

    Raises:
        ValueError: a part outside 0..1, or a block size below 1.
    """
    _positive(block_tokens=block_tokens)
    if not 0 <= continued <= 1:
        raise ValueError(f"continued={continued} must lie in 0..1")
    if min(depth[1]) < 0 or max(depth[1]) > 1:
        raise ValueError("depth must lie in 0..1")
    root = root_tokens // block_tokens
    full = (prompt_tokens // block_tokens).tolist()
    goes_on = (rng.random(len(full)) < continued).tolist()
    shares = np.interp(rng.random(len(full)), *depth).tolist()
    back = np.rint(np.interp(rng.random(len(full)), *distance)).astype(int).tolist()
    new = root
    found: list[np.ndarray] = []
    earlier = _Earlier()
    for i, blocks in enumerate(full):
        start = np.arange(min(root, blocks))
        if goes_on[i] and i and blocks > root:
            wanted = root + max(1, round(shares[i] * (blocks - root)))
            parent = earlier.near(max(0, i - max(1, back[i])), wanted)
            if parent is None:
                parent = int(np.argmax(earlier.blocks))
            start = found[parent][: max(wanted, len(start))]
        fresh = blocks - len(start)
        found.append(np.concatenate((start, np.arange(new, new + fresh))))
        earlier.add(blocks)
        new += fresh
    return tuple(found)
