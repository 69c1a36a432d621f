"""Beam search (Graves 2012, arXiv:1211.3711; Sutskever et al. 2014, arXiv:1409.3215), its length penalty (Wu et al. 2016,
arXiv:1609.08144, section 7), and diverse beam search (Vijayakumar et al. 2016, arXiv:1610.02424).

Axes: B sequence, N beam, V vocabulary, M = 2N candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.reference.decoding._loop import Step
from llmlab.reference.decoding._tree import TokenTree, as_tree
from llmlab.reference.op import Cost, Dims, Op


def beam(
    logits_BNV: np.ndarray, score_BN: np.ndarray, taken_BV: np.ndarray, *, diversity: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step: the 2N best continuations of N beams; return (score_BM, origin_BM, token_BM), best first.

        score(n, v) = score_n + log softmax(logits_n)_v,    ranked by    score(n, v) - diversity * taken_v

    `taken_v` counts how often groups before this one chose v in this step (Hamming diversity, section 4 of the diverse paper);
    the rank alone feels it, the score does not. Twice as many as beams, so that N stay where up to N of them end. Of equal
    ranks the lower beam and token come first (twins may differ). Where 2N exceeds what there is, the rest has score -inf
    and origin and token -1; a score of -inf is no beam. A NaN logit makes its beam's scores NaN, which rank last.

    Raises:
        ValueError: a negative diversity.

    >>> logits, taken = np.log([[[0.5, 0.5], [0.9, 0.1]]]), np.zeros((1, 2), dtype=int)
    >>> score, origin, token = beam(logits, np.log([[0.6, 0.4]]), taken)
    >>> np.exp(score).round(2), origin, token
    (array([[0.36, 0.3 , 0.3 , 0.04]]), array([[1, 0, 0, 1]]), array([[0, 0, 1, 1]]))
    """
    require_diversity(diversity)
    B, N, V = logits_BNV.shape
    score_BX = (score_BN[..., None] + log_softmax(logits_BNV)).reshape(B, N * V)
    rank_BX = score_BX - diversity * np.tile(taken_BV, (1, N))
    M, given = 2 * N, min(2 * N, N * V)
    best_BM = np.argsort(-np.nan_to_num(rank_BX, nan=-np.inf), axis=-1, kind="stable")[:, :given]
    score_BM = np.full((B, M), -np.inf, dtype=logits_BNV.dtype)
    origin_BM, token_BM = np.full((B, M), -1, dtype=np.int64), np.full((B, M), -1, dtype=np.int64)
    score_BM[:, :given] = np.take_along_axis(score_BX, best_BM, axis=-1)
    origin_BM[:, :given], token_BM[:, :given] = best_BM // V, best_BM % V
    return score_BM, origin_BM, token_BM


def require_diversity(diversity: float) -> None:
    """Refuse a strength that would reward what other groups chose."""
    if not diversity >= 0:
        raise ValueError(f"diversity={diversity}: must be at least 0")


def log_softmax(x_BNV: np.ndarray) -> np.ndarray:
    """Return log softmax along the last axis, by the shifted log-sum-exp."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted_BNV = x_BNV - np.max(x_BNV, axis=-1, keepdims=True)
        return shifted_BNV - np.log(np.sum(np.exp(shifted_BNV), axis=-1, keepdims=True))


@dataclass(frozen=True)
class Hypothesis:
    """A whole continuation: its tokens, their log-probabilities summed, and that by length to the power of the penalty."""

    ids: tuple[int, ...]
    logprob: float
    score: float


@dataclass(frozen=True)
class _Open:
    """A continuation that may go on: its node in the tree, and the logits after it."""

    ids: tuple[int, ...]
    logprob: float
    node: int
    logits: np.ndarray


def beam_search(
    model: Step | TokenTree,
    prompt: Sequence[int],
    *,
    beams: int,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    length_penalty: float = 1.0,
    groups: int = 1,
    diversity: float = 0.0,
) -> list[Hypothesis]:
    """Return the `beams` best continuations found, best first; with groups, each group's, group after group.

        score = log p(continuation) / length ** length_penalty

    The token that ends a hypothesis is part of its length. A candidate that ends counts where it is among its group's
    `beams / groups` best; what ends further down is dropped. At the last token all that are open end. A group searches until
    none of its open hypotheses could still beat its worst ended one, which changes nothing in the result.

    Raises:
        ValueError: an empty prompt, beams that are no multiple of groups, fewer than one token, or a negative diversity.

    >>> step = lambda new, state: (np.log([0.1, 0.6, 0.3]), None)
    >>> [hypothesis.ids for hypothesis in beam_search(step, [0], beams=2, max_tokens=2)]
    [(1, 1), (1, 2)]
    """
    if groups < 1 or beams < 1 or beams % groups:
        raise ValueError(f"beams={beams}, groups={groups}: need as many beams in each group, at least one")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: must be at least 1")
    tree = as_tree(model)
    logits_V = tree.begin(prompt).logits[-1]
    search = _Search(beams // groups, max_tokens, frozenset(stop_ids), length_penalty, diversity)
    open_GN = [[_Open((), 0.0, 0, logits_V)] for _ in range(groups)]
    ended_GN: list[list[Hypothesis]] = [[] for _ in range(groups)]
    for _ in range(max_tokens):
        taken_V = np.zeros(len(logits_V), dtype=np.int64)
        chosen: list[list[tuple[_Open, int, float]]] = []
        for group, hypotheses in enumerate(open_GN):
            chosen.append(search.step(hypotheses, ended_GN[group], taken_V))
        going = [one for group in chosen for one in group]
        if not going:
            break
        first = tree.size
        scored = tree.score([token for _, token, _ in going], [origin.node for origin, _, _ in going])
        tree.keep(range(first, tree.size))
        grown = iter(
            _Open((*origin.ids, token), logprob, first + n, scored.logits[n])
            for n, (origin, token, logprob) in enumerate(going)
        )
        open_GN = [[next(grown) for _ in group] for group in chosen]
    return [one for ended in ended_GN for one in search.best(ended)]


@dataclass(frozen=True)
class _Search:
    width: int
    max_tokens: int
    stop_ids: frozenset[int]
    length_penalty: float
    diversity: float

    def step(self, hypotheses: Sequence[_Open], ended: list[Hypothesis], taken_V: np.ndarray) -> list[tuple[_Open, int, float]]:
        """Move candidates that end to `ended` and count all chosen tokens in `taken_V`; return those that go on."""
        if not hypotheses:
            return []
        logits_1NV = np.stack([one.logits for one in hypotheses])[None]
        padded_1NV = np.pad(logits_1NV, ((0, 0), (0, self.width - len(hypotheses)), (0, 0)))  # the first step has one beam
        score_1N = np.array([[one.logprob for one in hypotheses] + [-np.inf] * (self.width - len(hypotheses))])
        score_1M, origin_1M, token_1M = beam(padded_1NV, score_1N, taken_V[None], diversity=self.diversity)
        going: list[tuple[_Open, int, float]] = []
        for rank, (logprob, n, token) in enumerate(zip(score_1M[0].tolist(), origin_1M[0].tolist(), token_1M[0].tolist())):
            if logprob == -np.inf:
                continue
            if token in self.stop_ids:
                if rank < self.width:
                    taken_V[token] += 1
                    ended.append(self._whole((*hypotheses[n].ids, token), logprob))
            elif len(going) < self.width:
                taken_V[token] += 1
                going.append((hypotheses[n], token, logprob))
        if len(hypotheses[0].ids) + 1 == self.max_tokens:
            ended += [self._whole((*origin.ids, token), logprob) for origin, token, logprob in going]
            return []
        return going if self._may_improve(going, ended) else []

    def best(self, ended: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The best that ended, best first."""
        return sorted(ended, key=lambda one: -one.score)[: self.width]

    def _whole(self, ids: tuple[int, ...], logprob: float) -> Hypothesis:
        return Hypothesis(ids, logprob, logprob / len(ids) ** self.length_penalty)

    def _may_improve(self, going: Sequence[tuple[_Open, int, float]], ended: Sequence[Hypothesis]) -> bool:
        if len(ended) < self.width or not going:
            return True
        longest = self.max_tokens if self.length_penalty > 0 else len(going[0][0].ids) + 1
        hoped = max(logprob for _, _, logprob in going) / longest**self.length_penalty  # a log-probability only falls
        return hoped > self.best(ended)[-1].score


def beam_cost(d: Dims) -> Cost:
    """Log-softmax (maximum, subtract, exp, sum, subtract), one addition, and one product and difference for the rank."""
    elements = d["B"] * d["N"] * d["V"]
    return Cost(
        flops=8 * elements,
        elements_read=elements + d["B"] * (d["N"] + d["V"]),
        elements_written=3 * d["B"] * d["M"],
    )


BEAM = Op(
    reference=beam,
    cost=beam_cost,
    dims={"B": range(1, 3), "N": range(1, 6), "V": range(2, 40)},
    derived={"M": lambda d: 2 * d["N"]},
    shapes={
        "llama-3 vocabulary, 8 beams": {"B": 1, "N": 8, "V": 128256},
        "gpt-2 vocabulary batch 4, 5 beams": {"B": 4, "N": 5, "V": 50257},
    },
    paper="arXiv:1610.02424",
    draw={
        "score_BN": lambda d, rng: -3 * rng.random((d["B"], d["N"])),
        "taken_BV": lambda d, rng: rng.integers(0, 3, (d["B"], d["V"])),
    },
    options=({}, {"diversity": 0.7}),
    nonfinite=(),  # which candidates are poisoned is said above, and tested
    powers={"B": 1, "N": 1, "V": 1},
)
