"""Speculative decoding: a cheap model guesses, the target verifies all guesses in one pass (Leviathan et al. 2023,
arXiv:2211.17192, algorithm 1; Chen et al. 2023, arXiv:2302.01318, algorithm 2, is the same rule).

Axes: B sequence, K guess, J = K + 1 position of the target (one after each guess, and one before them all), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmlab.reference.decoding._loop import Step, Stop
from llmlab.reference.decoding._tree import Draft, Scored, TokenTree, Verified, as_tree, chain, verified
from llmlab.reference.decoding.sampling import draw
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op

Distribution = Callable[[np.ndarray], np.ndarray]
"""logits_NV -> p_NV: softmax, or a temperature and truncations before it. Target and draft must not share it, but may."""


def speculative(
    draft_BK: np.ndarray, q_BKV: np.ndarray, p_BJV: np.ndarray, uniform_BJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Verify guesses; return (token_BJ, accepted_B).

    Guess k was drawn from q_k; the target says p_k at its place. The tokens that come out are distributed as the target's:

        accept guess k with probability min(1, p_k(x) / q_k(x)), in order, until one fails
        after a failure at k draw from   norm(max(0, p_k - q_k));   if none fails, from p_K

    Uniforms 0..K-1 decide the guesses (accepted where u q(x) < p(x)), uniform K draws the last token as in
    `decoding.sampling`. Row b of token_BJ holds accepted_B[b] guesses, the drawn token, and -1. Where rounding leaves no
    residual, p_k itself is drawn from; where there is no distribution (NaN), -1.

    Raises:
        ValueError: the target's positions are not one more than the guesses, or a guess lies outside the vocabulary.

    >>> q, p = np.array([[[0.5, 0.5]]]), np.array([[[0.2, 0.8], [1.0, 0.0]]])
    >>> speculative(np.array([[0]]), q, p, np.array([[0.3, 0.5]]))  # 0.3 < 0.2 / 0.5: holds
    (array([[0, 0]]), array([1]))
    >>> speculative(np.array([[0]]), q, p, np.array([[0.5, 0.5]]))
    (array([[ 1, -1]]), array([0]))
    """
    K, V = draft_BK.shape[1], p_BJV.shape[-1]
    if p_BJV.shape[1] != K + 1:
        raise ValueError(f"J={p_BJV.shape[1]} positions of the target for K={K} guesses: need {K + 1}")
    if draft_BK.size and not 0 <= draft_BK.min() <= draft_BK.max() < V:
        raise ValueError(f"guesses {draft_BK.min()}..{draft_BK.max()} outside 0..{V - 1}")
    q_BK = np.take_along_axis(q_BKV, draft_BK[..., None], axis=-1)[..., 0]
    p_BK = np.take_along_axis(p_BJV[:, :K], draft_BK[..., None], axis=-1)[..., 0]
    holds_BK = uniform_BJ[:, :K] * q_BK < p_BK
    accepted_B: np.ndarray = np.asarray(np.cumprod(holds_BK, axis=-1, dtype=np.int64).sum(axis=-1))
    token_BJ = np.where(np.arange(K + 1) < accepted_B[:, None], np.pad(draft_BK, ((0, 0), (0, 1))), -1)
    for b, j in enumerate(accepted_B):
        last_1V = p_BJV[b, j][None] if j == K else residual(p_BJV[b, j], q_BKV[b, j])[None]
        token_BJ[b, j] = draw(last_1V, uniform_BJ[b, K:])[0]
    return token_BJ, accepted_B


def residual(p_V: np.ndarray, q_V: np.ndarray) -> np.ndarray:
    """What the target still wants where a draw from q was refused: max(0, p - q), not normalized; p where that is nothing."""
    left_V = np.maximum(p_V - q_V, 0)
    return left_V if np.sum(left_V) > 0 else p_V


def accepted_law(alpha: float, guesses: int) -> np.ndarray:
    """Probabilities of 0..K accepted guesses where each holds with probability alpha, given that those before it did.

    Their mean plus one, (1 - alpha^(K+1)) / (1 - alpha), is what the serving simulator prices (eq. 1 of Leviathan et al.).

    >>> accepted_law(0.5, 2)
    array([0.5 , 0.25, 0.25])
    """
    reached_K = alpha ** np.arange(guesses + 1)
    return reached_K - np.append(reached_K[1:], 0.0)


@dataclass
class DraftModel:
    """Guesses drawn one after the other by a small model with a cache of its own.

    Attributes:
        model: the small model.
        guesses: how many.
        rng: of the draws; None takes the likeliest.
        distribution: logits_NV -> q_NV.
    """

    model: Step | TokenTree
    guesses: int
    rng: np.random.Generator | None = None
    distribution: Distribution = softmax
    _tree: TokenTree | None = field(default=None, init=False)
    _seen: int = field(default=0, init=False)
    _last: int = field(default=0, init=False)

    def draft(self, text: Sequence[int]) -> Draft:
        """Catch up with the text, then guess."""
        if self._tree is None:
            self._tree = as_tree(self.model)
            scored = self._tree.begin(text)
            self._last, self._seen = 0, len(text)
        else:
            first, new = self._tree.size, text[self._seen :]
            self._tree.keep([self._last])
            scored = self._tree.score(new, [self._last, *range(first, first + len(new) - 1)])
            self._last, self._seen = first + len(new) - 1, len(text)
        tree, node = self._tree, self._last
        tokens, q_KV = [text[-1]], []
        for k in range(self.guesses):
            q_KV.append(self.distribution(scored.logits[-1:])[0])
            tokens.append(int(np.argmax(q_KV[-1])) if self.rng is None else int(draw(q_KV[-1][None], self.rng.random(1))[0]))
            if k + 1 < self.guesses:
                scored = tree.score(tokens[-1:], [node])
                node = tree.size - 1
        if self.rng is None:  # the likeliest token is drawn for sure
            q_KV = list(np.eye(len(q_KV[0]))[tokens[1:]]) if q_KV else []
        return chain(tokens, np.array(q_KV) if q_KV else None)

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """Nothing: the text says all."""


def rejection(rng: np.random.Generator, distribution: Distribution = softmax) -> Callable[..., tuple[list[int], int]]:
    """A verification of guesses in a row that keeps the target's distribution: `speculative` with uniforms from `rng`."""

    def verify(draft: Draft, logits_NV: np.ndarray) -> tuple[list[int], int]:
        K, V = len(draft.tokens) - 1, logits_NV.shape[-1]
        q_NV = np.zeros((K + 1, V)) if draft.drawn_from is None else draft.drawn_from
        draft_1K = np.array([draft.tokens[1:]], dtype=np.int64)
        token_1J, accepted_1 = speculative(draft_1K, q_NV[None, 1:], distribution(logits_NV)[None], rng.random((1, K + 1)))
        accepted = int(accepted_1[0])
        return list(range(accepted + 1)), int(token_1J[0, accepted])

    return verify


def speculative_decoding(
    model: Step | TokenTree,
    draft_model: Step | TokenTree,
    prompt: Sequence[int],
    *,
    guesses: int,
    rng: np.random.Generator,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    distribution: Distribution = softmax,
) -> Verified:
    """Sample a text from the target as plain sampling would, with a draft model's guesses.

    Raises:
        ValueError: an empty prompt, or negative max_tokens.
    """
    drafter = DraftModel(draft_model, guesses, rng, distribution)
    return verified(model, prompt, drafter, rejection(rng, distribution), Stop(max_tokens, frozenset(stop_ids)))


def speculative_cost(d: Dims) -> Cost:
    """One row of target and draft per sequence: subtract, clamp, sum and one more sum for the draw; a product per guess."""
    rows = d["B"] * d["V"]
    return Cost(
        flops=4 * rows + d["B"] * d["K"],
        elements_read=2 * rows + d["B"] * (d["K"] + d["J"]),
        elements_written=d["B"] * (d["J"] + 1),
    )


def _distributions(axis: str, spread: float) -> Callable[[Dims, np.random.Generator], np.ndarray]:
    return lambda d, rng: softmax(spread * rng.standard_normal((d["B"], d[axis], d["V"])))


SPECULATIVE = Op(
    reference=speculative,
    cost=speculative_cost,
    dims={"B": range(1, 4), "K": range(1, 6), "V": range(1, 40)},
    derived={"J": lambda d: d["K"] + 1},
    shapes={
        "llama-3 vocabulary batch 32, 4 guesses": {"B": 32, "K": 4, "V": 128256},
        "gpt-2 vocabulary batch 8, 7 guesses": {"B": 8, "K": 7, "V": 50257},
    },
    paper="arXiv:2211.17192",
    draw={
        "draft_BK": lambda d, rng: rng.integers(0, d["V"], (d["B"], d["K"])),
        "q_BKV": _distributions("K", 1.0),
        "p_BJV": _distributions("J", 1.0),
        "uniform_BJ": lambda d, rng: rng.random((d["B"], d["J"])) ** np.arange(d["J"], 0, -1),  # small first: some hold
    },
    nonfinite=(),  # tokens come out, not numbers
    powers={"B": 1, "V": 1},
)
