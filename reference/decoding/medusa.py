"""Medusa: extra heads guess the tokens further on, and a tree of their guesses is verified in one pass (Cai et al. 2024,
arXiv:2401.10774; heads section 2.1.1, tree section 2.1.2, typical acceptance section 2.3.1).

Typical acceptance does NOT sample from the target's distribution, and the paper does not say so: it keeps what the target
finds likely enough. At temperature 0 it is greedy decoding. For exact sampling verify the same tree by
`decoding.tree_speculative`.

Axes: B sequence, N node of the tree, V vocabulary, D model width, K head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmlab.reference.decoding._loop import Step, Stop
from llmlab.reference.decoding._tree import ROOT, Draft, Scored, TokenTree, Verified, matching, verified
from llmlab.reference.decoding.sampling import entropy_B1
from llmlab.reference.decoding.speculative import Distribution
from llmlab.reference.decoding.tree_speculative import require_tree
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def medusa(
    parent_BN: np.ndarray, token_BN: np.ndarray, p_BNV: np.ndarray, *, epsilon: float = 0.09, delta: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Accept candidates that the target finds typical; return (path_BN, token_B).

    Node 0 is the first token, the target's own likeliest, accepted as it is. A node below it holds if its parent does and

        p_parent(x) > min(epsilon, delta exp(-H(p_parent)))        (section 2.3.1)

    with the entropy H in nats: the less sure the target, the more is let through. The longest path that holds becomes text; of
    equally long ones the likeliest, then the one whose end comes first. path_BN lists its nodes, then -1; token_B is the
    likeliest token after it, the next step's first token. A parent of -1 beyond node 0 says that there is no such node.

    Raises:
        ValueError: epsilon or delta outside 0..1, a parent that does not come before its child, a token outside the vocabulary.

    >>> p = np.array([[[0.7, 0.3], [0.95, 0.05], [0.0, 1.0]]])
    >>> medusa(np.array([[-1, 0, 1]]), np.array([[1, 0, 1]]), p)
    (array([[ 0,  1, -1]]), array([0]))
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must lie between 0 and 1")
    require_tree(parent_BN, token_BN, p_BNV.shape[-1])
    B, N = parent_BN.shape
    threshold_BN = np.minimum(epsilon, delta * np.exp(-entropy_B1(p_BNV)[..., 0]))
    path_BN, token_B = np.full((B, N), -1, dtype=np.int64), np.empty(B, dtype=np.int64)
    for b in range(B):
        length_N, likelihood_N = np.ones(N, dtype=np.int64), np.zeros(N)
        for n in range(1, N):
            parent = parent_BN[b, n]
            p = p_BNV[b, parent, token_BN[b, n]]
            holds = parent != ROOT and length_N[parent] > 0 and p > threshold_BN[b, parent]
            length_N[n] = length_N[parent] + 1 if holds else 0
            likelihood_N[n] = likelihood_N[parent] + np.log(p) if holds else 0
        best = [n for n in range(N) if length_N[n] == length_N.max()]
        path = Draft(tuple(token_BN[b]), tuple(parent_BN[b].tolist())).path_to(max(best, key=lambda n: likelihood_N[n]))
        path_BN[b, : len(path)] = path
        token_B[b] = np.argmax(p_BNV[b, path[-1]])
    return path_BN, token_B


@dataclass(frozen=True)
class MedusaHeads:
    """K heads on the last hidden state; head k guesses the token k + 1 places after the next one.

    Attributes:
        inner: w1_KDD of the residual block.
        outer: w2_KVD, each an output matrix (the model's own, to begin with).
    """

    inner: np.ndarray
    outer: np.ndarray

    def logits(self, hidden_D: np.ndarray) -> np.ndarray:
        """Return logits_KV:  W2 (SiLU(W1 h) + h)    (eq. 1)."""
        inner_KD = np.einsum("ked,d->ke", self.inner, hidden_D)
        states_KD = inner_KD / (1 + np.exp(-inner_KD)) + hidden_D
        return np.einsum("kvd,kd->kv", self.outer, states_KD)


def candidate_tree(first: int, logits_KV: np.ndarray, widths: Sequence[int]) -> Draft:
    """The Cartesian product of each head's `widths[k]` likeliest tokens below the first token (section 2.1.2).

    >>> candidate_tree(7, np.array([[0.0, 3.0, 2.0], [5.0, 0.0, 0.0]]), [2, 1])
    Draft(tokens=(7, 1, 2, 0, 0), parents=(-1, 0, 0, 1, 2), drawn_from=None)
    """
    tokens, parents, leaves = [first], [ROOT], [0]
    for logits_V, width in zip(logits_KV, widths):
        likeliest = np.argsort(-logits_V, kind="stable")[:width].tolist()
        grown = [(leaf, token) for leaf in leaves for token in likeliest]
        leaves = list(range(len(tokens), len(tokens) + len(grown)))
        parents += [leaf for leaf, _ in grown]
        tokens += [token for _, token in grown]
    return Draft(tuple(tokens), tuple(parents))


@dataclass
class MedusaDrafter:
    """Guesses of heads that read the target's own last hidden state: no second model, no second cache.

    Attributes:
        heads: the heads.
        widths: guesses per node at each depth, one entry per head used.
    """

    heads: MedusaHeads
    widths: Sequence[int]
    _hidden: np.ndarray = field(default_factory=lambda: np.zeros(0), init=False)

    def draft(self, text: Sequence[int]) -> Draft:
        """The product of the heads' guesses below the text's last token."""
        return candidate_tree(text[-1], self.heads.logits(self._hidden), self.widths)

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """Keep the hidden state of the last node that became text; the prompt's is its last token's.

        Raises:
            ValueError: the model shows no hidden states.
        """
        if scored.hidden is None:
            raise ValueError("the model shows no hidden states: Medusa's heads have nothing to read")
        self._hidden = scored.hidden[path[-1]] if len(scored.logits) == len(scored.hidden) else scored.hidden[-1]


def typical(
    distribution: Distribution = softmax, *, epsilon: float = 0.09, delta: float = 0.3
) -> Callable[..., tuple[list[int], int]]:
    """A verification by typical acceptance: `medusa` on the target's distributions."""

    def verify(draft: Draft, logits_NV: np.ndarray) -> tuple[list[int], int]:
        p_NV = distribution(logits_NV)
        tree = np.array([draft.parents]), np.array([draft.tokens])
        path_1N, token_1 = medusa(*tree, p_NV[None], epsilon=epsilon, delta=delta)
        return [int(node) for node in path_1N[0] if node >= 0], int(token_1[0])

    return verify


def medusa_decoding(
    model: Step | TokenTree,
    heads: MedusaHeads,
    prompt: Sequence[int],
    *,
    widths: Sequence[int],
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    verify: Callable[..., tuple[Sequence[int], int]] = matching,
) -> Verified:
    """Decode with Medusa heads; greedily, or by `typical(...)` or `tree_rejection(...)` as `verify`.

    Raises:
        ValueError: an empty prompt, or a model that shows no hidden states.
    """
    return verified(model, prompt, MedusaDrafter(heads, widths), verify, Stop(max_tokens, frozenset(stop_ids)))


def medusa_cost(d: Dims) -> Cost:
    """Entropy of every node: logarithm, product and sum of each probability; then a maximum of one row."""
    rows = d["B"] * d["N"] * d["V"]
    return Cost(
        flops=3 * rows + d["B"] * d["V"],
        elements_read=rows + 2 * d["B"] * d["N"],
        elements_written=d["B"] * (d["N"] + 1),
    )


def _parents(d: Dims, rng: np.random.Generator) -> np.ndarray:
    parent_BN = np.full((d["B"], d["N"]), ROOT, dtype=np.int64)
    for b, n in np.ndindex(d["B"], d["N"]):
        if n and rng.random() < 0.9:  # else there is no such node
            parent_BN[b, n] = rng.integers(0, n)
    return parent_BN


MEDUSA = Op(
    reference=medusa,
    cost=medusa_cost,
    dims={"B": range(1, 4), "N": range(1, 12), "V": range(1, 12)},
    shapes={
        "vicuna vocabulary, 64 nodes": {"B": 1, "N": 64, "V": 32000},
        "llama-3 vocabulary batch 8, 26 nodes": {"B": 8, "N": 26, "V": 128256},
    },
    paper="arXiv:2401.10774",
    draw={
        "parent_BN": _parents,
        "token_BN": lambda d, rng: rng.integers(0, d["V"], (d["B"], d["N"])),
        "p_BNV": lambda d, rng: softmax(2 * rng.standard_normal((d["B"], d["N"], d["V"]))),
    },
    options=({}, {"epsilon": 0.3, "delta": 0.9}, {"epsilon": 0.0}),
    nonfinite=(),  # tokens come out, not numbers
    powers={"B": 1, "N": 1, "V": 1},
)
