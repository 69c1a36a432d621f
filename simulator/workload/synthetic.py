"""Synthetic arrivals, lengths and shared prefixes. Units: integer nanoseconds and tokens.

Arrival processes return sorted `arrival_ns`; the first request of the random ones comes after one gap, that of the constant
rate at time 0. Lengths are whole numbers of at least 1.
"""

from __future__ import annotations

import numpy as np

from llmlab.simulator.workload.workload import NANOSECONDS


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
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
