"""Contrastive search: likely, but unlike what stands there already (Su et al. 2022, arXiv:2202.06417, section 4, eq. 5).

Axes: B sequence, K candidate, S token of the text so far, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.reference.decoding._loop import Generated, Step, Stop
from llmlab.reference.decoding._tree import TokenTree, as_tree
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def contrastive(
    probability_BK: np.ndarray, candidate_BKD: np.ndarray, context_BSD: np.ndarray, *, alpha: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Weigh candidates' probability against their likeness to the text; return (score_BK, choice_B).

        score(v) = (1 - alpha) p(v | text) - alpha max_s cos(h_v, h_s)    (eq. 5)

    h are last hidden states, a candidate's as it is after appending it. A zero vector is like nothing (cosine 0). The best
    score is chosen, of equals the first; candidates come likeliest first. A NaN or infinity in a candidate's state makes its
    score NaN, one in the text makes all scores of its row NaN.

    Raises:
        ValueError: alpha outside 0..1.

    >>> east, north = [1.0, 0.0], [0.0, 1.0]
    >>> contrastive(np.array([[0.6, 0.4]]), np.array([[east, north]]), np.array([[east]]), alpha=0.5)
    (array([[-0.2,  0.2]]), array([1]))
    """
    require_alpha(alpha)
    likeness_BKS = np.einsum("bkd,bsd->bks", _unit(candidate_BKD), _unit(context_BSD))
    score_BK = (1 - alpha) * probability_BK - alpha * np.max(likeness_BKS, axis=-1)
    return score_BK.astype(probability_BK.dtype), np.argmax(score_BK, axis=-1)


def require_alpha(alpha: float) -> None:
    """Refuse a weight that is none."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: must lie between 0 and 1")


def _unit(x_BSD: np.ndarray) -> np.ndarray:
    norm_BS1 = np.sqrt(np.sum(x_BSD**2, axis=-1, keepdims=True))
    with np.errstate(invalid="ignore"):
        return x_BSD / np.where(norm_BS1 == 0, 1, norm_BS1)


def contrastive_search(
    model: Step | TokenTree,
    prompt: Sequence[int],
    *,
    candidates: int,
    alpha: float = 0.6,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
) -> Generated:
    """Choose among the likeliest `candidates` at each place; all of them are scored in one call, one is kept.

    Raises:
        ValueError: an empty prompt, no candidate, alpha outside 0..1, or a model that shows no hidden states.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: need at least 1")
    require_alpha(alpha)
    stop, tree = Stop(max_tokens, frozenset(stop_ids)), as_tree(model)
    scored = tree.begin(prompt)
    if scored.hidden is None:
        raise ValueError("the model shows no hidden states: contrastive search compares them")
    context_SD, logits_V, node = scored.hidden, scored.logits[-1], 0
    generated: list[int] = []
    while not (reason := stop.reason(generated)):
        p_V = softmax(logits_V)
        token_K = np.argsort(-p_V, kind="stable")[:candidates]
        first = tree.size
        scored = tree.score(token_K.tolist(), [node] * len(token_K))
        assert scored.hidden is not None
        choice = int(contrastive(p_V[None, token_K], scored.hidden[None], context_SD[None], alpha=alpha)[1][0])
        node = first + choice
        tree.keep([node])
        generated.append(int(token_K[choice]))
        context_SD, logits_V = np.concatenate([context_SD, scored.hidden[[choice]]]), scored.logits[choice]
    return Generated(tuple(generated), reason)


def contrastive_cost(d: Dims) -> Cost:
    """Norms, one product of candidates and text, the maximum over the text, and three operations per score."""
    pairs, vectors = d["B"] * d["K"] * d["S"], d["B"] * (d["K"] + d["S"])
    return Cost(
        flops=2 * pairs * d["D"] + pairs + 3 * vectors * d["D"] + 3 * d["B"] * d["K"],
        elements_read=vectors * d["D"] + d["B"] * d["K"],
        elements_written=d["B"] * (d["K"] + 1),
    )


CONTRASTIVE = Op(
    reference=contrastive,
    cost=contrastive_cost,
    dims={"B": range(1, 4), "K": range(2, 7), "S": range(1, 9), "D": range(1, 20)},
    shapes={
        "gpt-2 large, 4 candidates, 512 tokens": {"B": 1, "K": 4, "S": 512, "D": 1280},
        "llama-3-8b, 8 candidates, 4k tokens": {"B": 1, "K": 8, "S": 4096, "D": 4096},
    },
    paper="arXiv:2202.06417",
    draw={"probability_BK": lambda d, rng: softmax(rng.standard_normal((d["B"], d["K"])))},
    options=({}, {"alpha": 0.0}, {"alpha": 1.0}),
    nonfinite=("candidate_BKD", "context_BSD"),
    powers={"B": 1, "S": 1, "D": 1},
)
