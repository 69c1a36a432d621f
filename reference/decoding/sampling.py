"""Sampling the next token: temperature and the truncations that keep the likely part of a distribution.

top-k: Fan et al. 2018 (arXiv:1805.04833). top-p: Holtzman et al. 2019 (arXiv:1904.09751). min-p: Nguyen et al. 2024
(arXiv:2407.01082). typical: Meister et al. 2022 (arXiv:2202.00666). epsilon, eta: Hewitt et al. 2022 (arXiv:2210.15191).

Axes: B sequence, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def sampling(
    logits_BV: np.ndarray,
    uniform_B: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon: float = 0.0,
    eta: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Truncate, renormalize and draw; return (probabilities_BV, token_B).

    Applied in this order, each to what the one before left, renormalized; the defaults change nothing:

        temperature  logits / temperature
        top_k        keep the k largest
        top_p        keep the fewest largest whose probabilities reach p
        min_p        keep p >= min_p * the largest
        typical_p    keep the fewest of surprisal nearest to the entropy whose probabilities reach p
        epsilon      keep p >= epsilon
        eta          keep p >= min(eta, sqrt(eta) exp(-entropy))

    Tokens that tie with the last one kept are kept too, so the order of a sort never shows. The most likely token always
    stays in the last two. The token drawn is the first whose cumulative probability, in order of id, exceeds uniform, which
    lies in [0, 1]. A row that is all -inf gives zeros; a NaN or +inf makes its row NaN; either draws token -1.

    Raises:
        ValueError: a temperature not above 0, a negative top_k, or another option outside 0..1.

    >>> probabilities, token = sampling(np.log([[0.5, 0.3, 0.2]]), np.array([0.7]), top_p=0.6)
    >>> probabilities.round(3), token
    (array([[0.625, 0.375, 0.   ]]), array([1]))
    """
    require_options(temperature, top_k, top_p, min_p, typical_p, epsilon, eta)
    x_BV = logits_BV / temperature
    V = x_BV.shape[-1]
    if 0 < top_k < V:
        kth_B1 = np.partition(x_BV, V - top_k, axis=-1)[:, V - top_k, None]
        x_BV = np.where(x_BV < kth_B1, -np.inf, x_BV)
    if top_p < 1:
        x_BV = np.where(past_mass(-x_BV, softmax(x_BV), top_p), -np.inf, x_BV)
    if min_p > 0:
        p_BV = softmax(x_BV)
        x_BV = np.where(p_BV < min_p * np.max(p_BV, axis=-1, keepdims=True), -np.inf, x_BV)
    if typical_p < 1:
        p_BV = softmax(x_BV)
        distance_BV = np.abs(surprisal(p_BV) - entropy_B1(p_BV))
        x_BV = np.where(past_mass(distance_BV, p_BV, typical_p), -np.inf, x_BV)
    if epsilon > 0:
        x_BV = _at_least(x_BV, softmax(x_BV), epsilon)
    if eta > 0:
        p_BV = softmax(x_BV)
        x_BV = _at_least(x_BV, p_BV, np.minimum(eta, eta**0.5 * np.exp(-entropy_B1(p_BV))).astype(x_BV.dtype))
    probabilities_BV = softmax(x_BV)
    return probabilities_BV, draw(probabilities_BV, uniform_B)


def require_options(
    temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float, epsilon: float, eta: float
) -> None:
    """Refuse options that name no distribution."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0; greedy decoding is decoding.greedy")
    if top_k < 0:
        raise ValueError(f"top_k={top_k}: must be 0 (off) or a number of tokens")
    shares = {"top_p": top_p, "min_p": min_p, "typical_p": typical_p, "epsilon": epsilon, "eta": eta}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: must lie between 0 and 1")


def past_mass(key_BV: np.ndarray, p_BV: np.ndarray, mass: float) -> np.ndarray:
    """Return removed_BV: keys above the smallest one up to which the probabilities reach `mass`."""
    order_BV = np.argsort(key_BV, axis=-1)
    reached_BV = np.cumsum(np.take_along_axis(p_BV, order_BV, axis=-1), axis=-1)
    last_B1 = np.minimum(np.sum(reached_BV < mass, axis=-1, keepdims=True), key_BV.shape[-1] - 1)
    threshold_B1 = np.take_along_axis(np.take_along_axis(key_BV, order_BV, axis=-1), last_B1, axis=-1)
    return key_BV > threshold_B1


def surprisal(p_BV: np.ndarray) -> np.ndarray:
    """Return -log p, infinity for what cannot happen."""
    with np.errstate(divide="ignore"):
        return -np.log(p_BV)


def entropy_B1(p_BV: np.ndarray) -> np.ndarray:
    """Return -sum p log p in nats."""
    return np.sum(p_BV * np.where(p_BV == 0, 0, surprisal(p_BV)), axis=-1, keepdims=True)


def _at_least(x_BV: np.ndarray, p_BV: np.ndarray, floor: np.ndarray | float) -> np.ndarray:
    unlikely_BV = (p_BV < floor) & (x_BV < np.max(x_BV, axis=-1, keepdims=True))
    return np.where(unlikely_BV, -np.inf, x_BV)


def draw(probabilities_BV: np.ndarray, uniform_B: np.ndarray) -> np.ndarray:
    """Return token_B, the inverse of the cumulative distribution at uniform; -1 for a row without one."""
    reached_BV = np.cumsum(probabilities_BV, axis=-1)
    total_B = reached_BV[:, -1]
    passed_B = np.sum(reached_BV <= (uniform_B * total_B)[:, None], axis=-1)
    possible_BV = np.where(probabilities_BV > 0, np.arange(probabilities_BV.shape[-1]), -1)
    return np.where(total_B > 0, np.minimum(passed_B, possible_BV.max(axis=-1)), -1)


def sampling_cost(d: Dims) -> Cost:
    """Nothing truncated: scaling, softmax as maximum, subtract, exp, sum and divide, and one sum for the draw."""
    elements = d["B"] * d["V"]
    return Cost(flops=7 * elements, elements_read=elements + d["B"], elements_written=elements + d["B"])


def _logits(d: Dims, rng: np.random.Generator) -> np.ndarray:
    return 3 * rng.standard_normal((d["B"], d["V"]))


SAMPLING = Op(
    reference=sampling,
    cost=sampling_cost,
    dims={"B": range(1, 4), "V": range(1, 80)},
    shapes={
        "llama-3 vocabulary batch 32": {"B": 32, "V": 128256},
        "gpt-2 vocabulary batch 8": {"B": 8, "V": 50257},
    },
    paper="arXiv:1904.09751",
    draw={"logits_BV": _logits, "uniform_B": lambda d, rng: rng.random(d["B"])},
    options=(
        {},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 5},
        {"temperature": 1.5, "min_p": 0.1},
        {"typical_p": 0.6},
        {"epsilon": 0.03},
        {"eta": 0.05},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.9, "epsilon": 0.01, "eta": 0.02},
    ),
    empty=("B",),
    nonfinite=("logits_BV",),
    powers={"B": 1, "V": 1},
)
