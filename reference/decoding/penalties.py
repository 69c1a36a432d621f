"""Penalties on tokens that a text already holds: repetition, frequency, presence, and no n-gram twice.

repetition: Keskar et al. 2019 (CTRL, arXiv:1909.05858, section 4.1). CTRL divides every seen token's logit, which makes a token
with a negative logit likelier; here, as in every engine since (Hugging Face's TGI and transformers, vLLM), a negative logit is
multiplied. frequency and presence: OpenAI's API reference, "Frequency and presence penalties" (2020). no-repeat n-gram: Paulus
et al. 2017 (arXiv:1705.04304, section 2.5).

Axes: B sequence, V vocabulary, P prompt token, S generated token.
"""

from __future__ import annotations

import numpy as np

from llmlab.reference.op import Cost, Dims, Op


def penalties(
    logits_BV: np.ndarray,
    prompt_BP: np.ndarray,
    output_BS: np.ndarray,
    *,
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
    no_repeat_ngram: int = 0,
) -> np.ndarray:
    """Lower the logits of tokens that occurred; return logits_BV. The defaults change nothing.

    With c the times a token occurs in the output, applied in this order:

        repetition       logit / r if logit > 0, else logit * r, for tokens of prompt or output
        frequency        logit - f c
        presence         logit - p [c > 0]
        no_repeat_ngram  -inf for a token that would complete an n-gram of prompt and output a second time

    Repetition and n-grams look at the prompt too, frequency and presence at the output alone (as vLLM does). Both token
    arrays are padded with -1, in any place. A logit that is NaN stays NaN unless its token completes an n-gram.

    Raises:
        ValueError: a repetition not above 0, frequency or presence outside -2..2, a negative n, or a token outside the ids.

    >>> penalties(np.array([[3.0, -1.0, 2.0, 2.0]]), np.array([[0]]), np.array([[1, 2, 2, -1]]), repetition=2, frequency=0.25)
    array([[ 1.5 , -2.25,  0.5 ,  2.  ]])
    """
    B, V = logits_BV.shape
    require_penalties(repetition, frequency, presence, no_repeat_ngram)
    for ids in (prompt_BP, output_BS):
        if ids.size and not -1 <= ids.min() <= ids.max() < V:
            raise ValueError(f"token ids {ids.min()}..{ids.max()} outside -1..{V - 1}")
    count_BV = _counts(output_BS, V)
    seen_BV = (count_BV > 0) | (_counts(prompt_BP, V) > 0)
    x_BV = np.where(seen_BV, np.where(logits_BV > 0, logits_BV / repetition, logits_BV * repetition), logits_BV)
    x_BV = (x_BV - frequency * count_BV - presence * (count_BV > 0)).astype(logits_BV.dtype)
    if no_repeat_ngram:
        for b in range(B):
            text = np.concatenate([prompt_BP[b], output_BS[b]])
            x_BV[b, closing(text[text >= 0], no_repeat_ngram)] = -np.inf
    return x_BV


def require_penalties(repetition: float, frequency: float, presence: float, no_repeat_ngram: int) -> None:
    """Refuse options that mean nothing."""
    if not 0 < repetition < np.inf:
        raise ValueError(f"repetition={repetition}: must be above 0; 1 changes nothing")
    for name, value in (("frequency", frequency), ("presence", presence)):
        if not -2 <= value <= 2:
            raise ValueError(f"{name}={value}: must lie between -2 and 2")
    if no_repeat_ngram < 0:
        raise ValueError(f"no_repeat_ngram={no_repeat_ngram}: must be 0 (off) or a length")


def closing(text_S: np.ndarray, n: int) -> list[int]:
    """Tokens that would make the last n tokens a repetition of n tokens before.

    >>> closing(np.array([1, 2, 3, 1, 2]), 3), closing(np.array([4, 5]), 1)
    ([3], [4, 5])
    """
    stem = text_S[len(text_S) - n + 1 :].tolist() if n > 1 else []
    if len(stem) < n - 1:
        return []
    starts = range(len(text_S) - n + 1)
    return [int(text_S[s + n - 1]) for s in starts if text_S[s : s + n - 1].tolist() == stem]


def _counts(ids_BS: np.ndarray, V: int) -> np.ndarray:
    count_BV = np.zeros((len(ids_BS), V), dtype=np.int64)
    row_BS = np.broadcast_to(np.arange(len(ids_BS))[:, None], ids_BS.shape)
    np.add.at(count_BV, (row_BS[ids_BS >= 0], ids_BS[ids_BS >= 0]), 1)
    return count_BV


def penalties_cost(d: Dims) -> Cost:
    """Every logit copied, those of the text's tokens (at most one per token) penalized: 3 FLOPs each."""
    tokens = d["B"] * (d["P"] + d["S"])
    return Cost(flops=3 * tokens, elements_read=d["B"] * d["V"] + tokens, elements_written=d["B"] * d["V"])


def _ids(axis: str) -> object:
    def draw(d: Dims, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(-1, min(d["V"], 6), (d["B"], d[axis]))  # few different ones, so that they repeat

    return draw


PENALTIES = Op(
    reference=penalties,
    cost=penalties_cost,
    dims={"B": range(1, 4), "V": range(1, 40), "P": range(0, 7), "S": range(0, 12)},
    shapes={
        "llama-3 vocabulary batch 32, 1k + 256 tokens": {"B": 32, "V": 128256, "P": 1024, "S": 256},
        "gpt-2 vocabulary batch 8, 512 + 128 tokens": {"B": 8, "V": 50257, "P": 512, "S": 128},
    },
    paper="arXiv:1909.05858",
    draw={"prompt_BP": _ids("P"), "output_BS": _ids("S")},  # type: ignore[dict-item]
    options=(
        {"repetition": 1.2, "frequency": 0.3, "presence": 0.2},
        {},
        {"repetition": 1.3},
        {"frequency": -0.5},
        {"presence": 1.5},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2},
        {"repetition": 0.8, "frequency": 0.5, "presence": -0.1, "no_repeat_ngram": 3},
    ),
    empty=("B", "P", "S"),
    nonfinite=("logits_BV",),
    powers={"B": 1},
)
