"""What decodings that verify several tokens at once share: a model that scores a tree of tokens, and the loop around it.

Candidates hang below the text as a tree: a token's parent is the token before it, so that one call scores many continuations
and a shared beginning once (Miao et al. 2023, arXiv:2305.09781, section 4.2). What is not kept is forgotten: the cache rolls
back. Axes: N node, V vocabulary, D model width, T prompt token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llmlab.reference.decoding._loop import Step, Stop

ROOT = -1
"""The parent of a draft's first node: the last token of the text that the model has seen."""


@dataclass(frozen=True)
class Scored:
    """What a model says about some nodes.

    Attributes:
        logits: logits_NV of each one's next token.
        hidden: hidden_ND, the states the output matrix turns into logits, where the model shows them.
    """

    logits: np.ndarray
    hidden: np.ndarray | None = None


class TokenTree(Protocol):
    """A model with a cache that grows as a tree. Node 0 is the prompt's last token; nodes are counted as they are scored."""

    size: int
    """Nodes ever made: the next one's number."""

    def begin(self, prompt: Sequence[int]) -> Scored:
        """Take the prompt; return the logits of its last token, and the hidden states of all of it."""

    def score(self, tokens_N: Sequence[int], parents_N: Sequence[int]) -> Scored:
        """Add nodes below kept ones or earlier ones of this call, a parent before its children."""

    def keep(self, nodes: Sequence[int]) -> None:
        """Forget all nodes but these and those they descend from."""


@runtime_checkable
class HiddenStep(Protocol):
    """A step that also shows the last hidden states, for decodings that read them."""

    def hidden(self, new: Sequence[int], state: Any) -> tuple[np.ndarray, Any]:
        """Hidden states of all new tokens (hidden_TD), and the new state."""

    def head(self, hidden_TD: np.ndarray) -> np.ndarray:
        """Logits_TV of hidden states."""


class StepTree:
    """A tree over a plain step, one call per node: what a tree of tokens means. States are values, so forgetting is free.

    >>> tree = StepTree(lambda new, state: (np.eye(9)[new[-1] + 1], None))
    >>> tree.begin([2, 3]).logits.argmax(), tree.score([4, 7], [0, 1]).logits.argmax(-1)
    (np.int64(4), array([5, 8]))
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.size = 0
        self._states: dict[int, Any] = {}
        self._parents: dict[int, int] = {}

    def begin(self, prompt: Sequence[int]) -> Scored:
        """Take the prompt.

        Raises:
            ValueError: an empty prompt, of which nothing could be predicted.
        """
        if not len(prompt):
            raise ValueError("prompt=[]: needs at least one token")
        scored, state = self._call(list(prompt), None)
        self._states, self._parents, self.size = {0: state}, {0: ROOT}, 1
        return scored

    def score(self, tokens_N: Sequence[int], parents_N: Sequence[int]) -> Scored:
        """Score one node after the other, each from its parent's state."""
        told = []
        for token, parent in zip(tokens_N, parents_N, strict=True):
            scored, self._states[self.size] = self._call([int(token)], self._states[int(parent)])
            self._parents[self.size] = int(parent)
            self.size += 1
            told.append(scored)
        hidden = [scored.hidden for scored in told if scored.hidden is not None]
        return Scored(np.concatenate([scored.logits for scored in told]), np.concatenate(hidden) if hidden else None)

    def keep(self, nodes: Sequence[int]) -> None:
        """Forget the states of all other nodes."""
        kept: set[int] = set()
        for node in nodes:
            while node != ROOT and node not in kept:
                kept.add(node)
                node = self._parents[node]
        self._states = {node: state for node, state in self._states.items() if node in kept}
        self._parents = {node: parent for node, parent in self._parents.items() if node in kept}

    def _call(self, new: list[int], state: Any) -> tuple[Scored, Any]:
        if isinstance(self.step, HiddenStep):
            hidden_TD, state = self.step.hidden(new, state)
            return Scored(self.step.head(hidden_TD[-1:]), hidden_TD), state
        logits_V, state = self.step(new, state)
        return Scored(np.asarray(logits_V)[None]), state


def as_tree(model: Step | TokenTree) -> TokenTree:
    """A tree over a step; a tree stays as it is."""
    return model if hasattr(model, "begin") else StepTree(model)  # type: ignore[return-value, arg-type]


class TreeStep:
    """A plain step over a tree, for decodings that go token by token. The state is the last node; it must be the latest."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree

    def __call__(self, new: Sequence[int], node: int | None) -> tuple[np.ndarray, int]:
        """Logits of the last new token, and its node."""
        if node is None:
            return self.tree.begin(new).logits[-1], 0
        first = self.tree.size
        scored = self.tree.score(new, [node, *range(first, first + len(new) - 1)])
        last = self.tree.size - 1
        self.tree.keep([last])
        return scored.logits[-1], last


@dataclass(frozen=True)
class Draft:
    """Candidates for one call: node 0 is the text's last token, which no call has scored yet; the rest hang below it.

    Attributes:
        tokens: one per node.
        parents: index of each node's parent in this draft, smaller than its own; `ROOT` for node 0.
        drawn_from: q_NV, the distribution each node was drawn from (row 0 is not read); None where none was drawn.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...] = (ROOT,)
    drawn_from: np.ndarray | None = None

    def children(self, node: int) -> list[int]:
        """Nodes that hang below this one, in order."""
        return [child for child, parent in enumerate(self.parents) if parent == node and child]

    def path_to(self, node: int) -> list[int]:
        """Nodes from node 0 down to this one."""
        path = [node]
        while self.parents[path[-1]] != ROOT:
            path.append(self.parents[path[-1]])
        return path[::-1]


def chain(tokens: Sequence[int], q_KV: np.ndarray | None = None) -> Draft:
    """Guesses in a row below the first token; `q_KV` says what each guess was drawn from.

    >>> chain([5, 6, 7]).parents
    (-1, 0, 1)
    """
    q_NV = None if q_KV is None else np.concatenate([np.zeros((1, *q_KV.shape[1:])), q_KV])
    return Draft(tuple(tokens), tuple(range(ROOT, len(tokens) - 1)), q_NV)


class Drafter(Protocol):
    """Where candidates come from."""

    def draft(self, text: Sequence[int]) -> Draft:
        """Candidates below the last token of the text."""

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """See what the model said of a draft, and which of its nodes became text. First comes the prompt, all of it."""


Verify = Callable[[Draft, np.ndarray], tuple[Sequence[int], int]]
"""(draft, logits_NV) -> the nodes that become text, from node 0 down, and the token after them."""


@dataclass(frozen=True)
class Verified:
    """The tokens that came out, why no more did, and how many each call of the model gave."""

    ids: tuple[int, ...]
    reason: str
    emitted: tuple[int, ...] = field(default=())


def same_text(expected: Verified, actual: Verified) -> bool:
    """The same tokens for the same reason; and by the same calls, where both count them."""
    counted = not (expected.emitted and actual.emitted) or expected.emitted == actual.emitted
    return (expected.ids, expected.reason) == (actual.ids, actual.reason) and counted


def verified(model: Step | TokenTree, prompt: Sequence[int], drafter: Drafter, verify: Verify, stop: Stop) -> Verified:
    """Draft, score all candidates in one call, keep what holds and one token more, again and again.

    Raises:
        ValueError: an empty prompt.
    """
    tree = as_tree(model)
    scored = tree.begin(prompt)
    draft, first = chain(prompt[-1:]), 0
    path, token = verify(draft, scored.logits[-1:])
    generated: list[int] = []
    emitted: list[int] = []
    if reason := stop.reason(generated):
        return Verified((), reason)
    while True:
        drafter.learn(draft, scored, path)
        emitted.append(0)
        for new in [*(draft.tokens[node] for node in path[1:]), int(token)]:
            generated.append(new)
            emitted[-1] += 1
            if reason := stop.reason(generated):
                return Verified(tuple(generated), reason, tuple(emitted))
        last = first + path[-1]
        tree.keep([last])
        draft, first = drafter.draft([*prompt, *generated]), tree.size
        scored = tree.score(draft.tokens, [last if parent == ROOT else first + parent for parent in draft.parents])
        path, token = verify(draft, scored.logits)


def matching(draft: Draft, logits_NV: np.ndarray) -> tuple[list[int], int]:
    """Follow the model's likeliest token through the draft as far as any branch goes: greedy decoding's text comes out.

    Of equal logits the lowest id counts.
    """
    agreeing = [0]
    while True:
        wanted = int(np.argmax(logits_NV[agreeing[0]]))  # all that agree so far are the same text
        below = [child for node in agreeing for child in draft.children(node) if draft.tokens[child] == wanted]
        if not below:
            return draft.path_to(agreeing[0]), wanted
        agreeing = below
