"""Verification of a token tree: several guesses per place, one pass for all (SpecInfer, Miao et al. 2023, arXiv:2305.09781,
algorithm 2, "VerifyStochastic", with its multi-step speculative sampling; the tree mask is section 4.2).

Axes: B sequence, N node of the tree, A ancestor (= N), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmlab.reference.decoding._loop import Step, Stop
from llmlab.reference.decoding._tree import ROOT, Draft, Scored, TokenTree, Verified, as_tree, verified
from llmlab.reference.decoding.sampling import draw
from llmlab.reference.decoding.speculative import Distribution, residual
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.op import Cost, Dims, Op


def tree_speculative(
    parent_BN: np.ndarray, token_BN: np.ndarray, q_BNV: np.ndarray, p_BNV: np.ndarray, uniform_BN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Walk down the tree as far as guesses hold; return (path_BN, token_B).

    Node 0 is text. Node n guesses the token after its parent and was drawn from q_n; p_n is the target's distribution after
    node n. At a node, its children are tried in order of their number, each against what those before it left over:

        r = p_node;  accept child c with probability min(1, r(x_c) / q_c(x_c)), else r <- norm(max(0, r - q_c))
        where no child holds, draw the last token from r

    Children drawn independently, or one after the other without replacement with q_c renormalized, keep the target's
    distribution; so does a guess that was not drawn at all, with q_c all on its token. (The paper tries children in random
    order: number them so.) Uniform n decides node n (accepted where u q(x) < r(x)), uniform 0 draws the last token. A parent of
    -1 beyond node 0 says that there is no such node: rows may hold trees of several sizes. path_BN lists the nodes that
    became text, from 0, then -1. Where rounding leaves no residual, r stays; where there is no distribution, -1 is drawn.

    Raises:
        ValueError: a parent that does not come before its child, or a token outside the vocabulary.

    >>> p, q = np.array([[[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]]]), np.full((1, 3, 2), 0.5)
    >>> tree_speculative(np.array([[-1, 0, 0]]), np.array([[1, 0, 1]]), q, p, np.array([[0.6, 0.9, 0.9]]))
    (array([[ 0,  2, -1]]), array([1]))
    """
    require_tree(parent_BN, token_BN, p_BNV.shape[-1])
    B, N = parent_BN.shape
    path_BN, last_B = np.full((B, N), -1, dtype=np.int64), np.empty(B, dtype=np.int64)
    for b in range(B):
        path, left_V = [0], p_BNV[b, 0]
        for n in range(1, N):  # children of the last node on the path come in order; others are passed by
            if parent_BN[b, n] != path[-1]:
                continue
            x = token_BN[b, n]
            if uniform_BN[b, n] * q_BNV[b, n, x] < left_V[x]:
                path.append(n)
                left_V = p_BNV[b, n]
            else:
                rest_V = residual(left_V, q_BNV[b, n])
                left_V = rest_V / np.sum(rest_V)
        path_BN[b, : len(path)] = path
        last_B[b] = draw(left_V[None], uniform_BN[b, :1])[0]
    return path_BN, last_B


def require_tree(parent_BN: np.ndarray, token_BN: np.ndarray, V: int) -> None:
    """Refuse what is no tree over the vocabulary."""
    if not parent_BN.size:
        return
    if (parent_BN >= np.arange(parent_BN.shape[1])).any() or (parent_BN < ROOT).any():
        b, n = np.argwhere((parent_BN >= np.arange(parent_BN.shape[1])) | (parent_BN < ROOT))[0]
        raise ValueError(f"parent {parent_BN[b, n]} of node {n}: must come before it, or be -1")
    if not 0 <= token_BN.min() <= token_BN.max() < V:
        raise ValueError(f"tokens {token_BN.min()}..{token_BN.max()} outside 0..{V - 1}")


def tree_mask(parent_N: np.ndarray) -> np.ndarray:
    """Return seen_NA: each node attends to itself and its ancestors (and to all of the text, which is not part of it).

    >>> tree_mask(np.array([-1, 0, 0, 2])).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 0, 1, 0],
           [1, 0, 1, 1]])
    """
    seen_NA = np.eye(len(parent_N), dtype=bool)
    for n, parent in enumerate(parent_N):
        if parent != ROOT:
            seen_NA[n] |= seen_NA[parent]
    return seen_NA


@dataclass
class TreeOfDrafts:
    """A tree drawn from a small model: `widths[d]` guesses below every node of depth d, each drawn independently.

    Attributes:
        model: the small model.
        widths: guesses per node at each depth.
        rng: of the draws; None takes the likeliest ones, each once.
        distribution: logits_NV -> q_NV.
    """

    model: Step | TokenTree
    widths: Sequence[int]
    rng: np.random.Generator | None = None
    distribution: Distribution = softmax

    def draft(self, text: Sequence[int]) -> Draft:
        """Begin afresh on the text and grow the tree, one call of the small model per depth."""
        tree = as_tree(self.model)
        q_LV = self.distribution(tree.begin(text).logits)
        leaves, tokens, parents = [0], [text[-1]], [ROOT]
        rows = [np.zeros_like(q_LV[0])]
        known = {0: 0}  # nodes of this draft -> nodes of the small model's tree
        for depth, width in enumerate(self.widths):
            grown = []
            for leaf, q_V in zip(leaves, q_LV):
                for token, drawn_V in self._guesses(q_V, width):
                    tokens.append(token)
                    parents.append(leaf)
                    rows.append(drawn_V)
                    grown.append(len(tokens) - 1)
            if depth + 1 < len(self.widths):
                known |= {node: tree.size + n for n, node in enumerate(grown)}
                scored = tree.score([tokens[node] for node in grown], [known[parents[node]] for node in grown])
                q_LV = self.distribution(scored.logits)
            leaves = grown
        return Draft(tuple(tokens), tuple(parents), np.array(rows))

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """Nothing: the text says all."""

    def _guesses(self, q_V: np.ndarray, width: int) -> list[tuple[int, np.ndarray]]:
        if self.rng is None:
            likeliest = np.argsort(-q_V, kind="stable")[:width]
            return [(int(token), np.eye(len(q_V))[token]) for token in likeliest]
        return [(int(draw(q_V[None], self.rng.random(1))[0]), q_V) for _ in range(width)]


def tree_rejection(rng: np.random.Generator, distribution: Distribution = softmax) -> Callable[..., tuple[list[int], int]]:
    """A verification of trees that keeps the target's distribution: `tree_speculative` with uniforms from `rng`.

    Guesses that were not drawn (a draft without distributions) count as drawn for sure.
    """

    def verify(draft: Draft, logits_NV: np.ndarray) -> tuple[list[int], int]:
        N, V = logits_NV.shape
        token_N = np.array(draft.tokens)
        q_NV = np.eye(V)[token_N] if draft.drawn_from is None else draft.drawn_from
        path_1N, last_1 = tree_speculative(
            np.array([draft.parents]), token_N[None], q_NV[None], distribution(logits_NV)[None], rng.random((1, N))
        )
        return [int(node) for node in path_1N[0] if node >= 0], int(last_1[0])

    return verify


def tree_decoding(
    model: Step | TokenTree,
    draft_model: Step | TokenTree,
    prompt: Sequence[int],
    *,
    widths: Sequence[int],
    rng: np.random.Generator,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    distribution: Distribution = softmax,
) -> Verified:
    """Sample a text from the target as plain sampling would, with a draft model's tree of guesses.

    Raises:
        ValueError: an empty prompt, or negative max_tokens.
    """
    drafter = TreeOfDrafts(draft_model, widths, rng, distribution)
    return verified(model, prompt, drafter, tree_rejection(rng, distribution), Stop(max_tokens, frozenset(stop_ids)))


def tree_speculative_cost(d: Dims) -> Cost:
    """Every guess refused at node 0, the most there is: per guess one row subtracted, clamped, summed and divided; one draw."""
    rows = d["B"] * d["N"] * d["V"]
    return Cost(
        flops=4 * rows,
        elements_read=rows + d["B"] * d["N"] * 3,
        elements_written=d["B"] * (d["N"] + 1),
    )


def _parents(d: Dims, rng: np.random.Generator) -> np.ndarray:
    parent_BN = np.full((d["B"], d["N"]), ROOT, dtype=np.int64)
    for b, n in np.ndindex(d["B"], d["N"]):
        if n and rng.random() < 0.9:  # else there is no such node
            parent_BN[b, n] = rng.integers(max(0, n - 3), n)
    return parent_BN


def _rows(d: Dims, rng: np.random.Generator) -> np.ndarray:
    return softmax(rng.standard_normal((d["B"], d["N"], d["V"])))


TREE_SPECULATIVE = Op(
    reference=tree_speculative,
    cost=tree_speculative_cost,
    dims={"B": range(1, 4), "N": range(1, 12), "V": range(1, 30)},
    shapes={
        "llama-3 vocabulary batch 8, 16 nodes": {"B": 8, "N": 16, "V": 128256},
        "gpt-2 vocabulary, 64 nodes": {"B": 1, "N": 64, "V": 50257},
    },
    paper="arXiv:2305.09781",
    draw={
        "parent_BN": _parents,
        "token_BN": lambda d, rng: rng.integers(0, d["V"], (d["B"], d["N"])),
        "q_BNV": _rows,
        "p_BNV": _rows,
        "uniform_BN": lambda d, rng: rng.random((d["B"], d["N"])),
    },
    nonfinite=(),  # tokens come out, not numbers
    powers={"B": 1, "N": 1, "V": 1},
)
