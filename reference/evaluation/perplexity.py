"""Perplexity of long texts by strided windows, and bits per byte.

Perplexity: Jelinek et al. 1977 (doi:10.1121/1.2016299). Windows that overlap, so that every token is scored once with at least
context - stride tokens before it: Baevski and Auli 2019 (arXiv:1809.10853, section 5.2, "context window"). Axes: B window,
T position, V vocabulary, N token of the text.
"""

from __future__ import annotations

import math

import numpy as np

from llmlab.reference.layers.cross_entropy import cross_entropy
from llmlab.reference.op import Cost, Dims, Op


def perplexity(logits_BTV: np.ndarray, ids_BT: np.ndarray, scored_BT: np.ndarray) -> np.ndarray:
    """Return (perplexity, mean bits per token), as one array of two, over the tokens that are scored.

        perplexity = exp(-1/n sum log p(token | tokens before it in its window)),   bits = log2(perplexity)

    The logits at position t predict the token at t + 1: shifting is done here, and a first position cannot be scored. Logits
    whose next token is not scored have no say, whatever they are; a NaN or +inf among the others makes the result NaN.

    Raises:
        ValueError: nothing is scored, a first position is, or a scored token is outside the vocabulary.

    >>> even = np.zeros((1, 3, 8)); ids = np.array([[1, 2, 3]])
    >>> perplexity(even, ids, np.array([[False, True, True]])).round(12).tolist()
    [8.0, 3.0]
    """
    if scored_BT[:, :1].any():
        raise ValueError("position 0 is scored: nothing predicts the first token of a window")
    tokens = np.count_nonzero(scored_BT)
    if not tokens:
        raise ValueError("no token is scored")
    targets_BT = np.where(scored_BT[:, 1:], ids_BT[:, 1:], -100)
    nats = np.sum(cross_entropy(logits_BTV[:, :-1], targets_BT)) / logits_BTV.dtype.type(tokens)
    return np.stack([np.exp(nats), nats / logits_BTV.dtype.type(math.log(2))])


def strided_windows(ids_N: np.ndarray, *, context: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into windows that start `stride` apart; return (ids_BT, scored_BT), T = min(context, N).

    Each token but the first is scored once: a later window scores only its last `stride` tokens. The last one is filled up with
    id 0 on the right, which a causal model does not see. stride = context scores windows side by side, losing the first token
    of each; stride = 1 gives every token the longest past.

    Raises:
        ValueError: context or stride below 1, stride above context, or fewer than two tokens.

    >>> strided_windows(np.arange(5), context=3, stride=2)[0].tolist()
    [[0, 1, 2], [2, 3, 4]]
    >>> strided_windows(np.arange(5), context=3, stride=2)[1].astype(int).tolist()
    [[0, 1, 1], [0, 1, 1]]
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}, context={context}: need 1 <= stride <= context")
    if len(ids_N) < 2:
        raise ValueError(f"{len(ids_N)} tokens: the first is never scored, so at least two are needed")
    T = min(context, len(ids_N))
    starts = [0]
    while starts[-1] + T < len(ids_N):
        starts.append(starts[-1] + stride)
    ids_BT = np.zeros((len(starts), T), dtype=ids_N.dtype)
    scored_BT = np.zeros((len(starts), T), dtype=bool)
    done = 1  # the first token of the text has no past
    for row, start in enumerate(starts):
        end = min(start + T, len(ids_N))
        ids_BT[row, : end - start] = ids_N[start:end]
        scored_BT[row, max(done - start, 1) : end - start] = True
        done = end
    return ids_BT, scored_BT


def bits_per_byte(bits_per_token: float, tokens: int, num_bytes: int) -> float:
    """Bits a text costs per byte of its UTF-8: comparable between tokenizers, as perplexity per token is not.

    Raises:
        ValueError: no bytes, or a negative count.

    >>> bits_per_byte(3.0, tokens=10, num_bytes=40)
    0.75
    """
    if num_bytes < 1 or tokens < 0:
        raise ValueError(f"tokens={tokens}, num_bytes={num_bytes}: need tokens >= 0 and num_bytes >= 1")
    return bits_per_token * tokens / num_bytes


def _draw_scored(d: Dims, rng: np.random.Generator) -> np.ndarray:
    scored_BT = rng.random((d["B"], d["T"])) < 0.7
    scored_BT[:, 0] = False
    scored_BT[-1, -1] = True
    return scored_BT


def perplexity_cost(d: Dims) -> Cost:
    """Maximum, subtract, exp and add per logit that predicts something; the last position of a window is not read."""
    positions = d["B"] * (d["T"] - 1)
    return Cost(
        flops=4 * positions * d["V"],
        elements_read=positions * d["V"] + 2 * d["B"] * d["T"],
        elements_written=2,
    )


PERPLEXITY = Op(
    reference=perplexity,
    cost=perplexity_cost,
    dims={"B": range(1, 4), "T": range(2, 7), "V": range(1, 60)},
    shapes={"gpt-2 one window of 1024": {"B": 1, "T": 1024, "V": 50257}},
    paper="doi:10.1121/1.2016299",
    draw={"ids_BT": lambda d, rng: rng.integers(0, d["V"], (d["B"], d["T"])), "scored_BT": _draw_scored},
    empty=(),
    nonfinite=(),  # which logits count depends on what is scored; the tests of this component look at it
    powers={"B": 1, "V": 1},
)
