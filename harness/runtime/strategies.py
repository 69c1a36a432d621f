"""How one text is decoded by the real model: every way of decoding of `reference/decoding` over the torch model's own cache.

    tell(model, prompt, speculating(draft_model, guesses=4), max_tokens=64)

A strategy is the reference's loop given a tree of tokens; here the tree is `TorchTree`: one pass scores all candidates under
a tree mask, and the cache rolls back to what was kept. (Batched serving with a paged cache is `Engine`; its speculation is
`SpeculatingEngine`.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from llmlab.kernels.decoding._tree_torch import TorchTree
from llmlab.kernels.models.llama_torch import LlamaTorch
from llmlab.reference.decoding._loop import Stop, generate
from llmlab.reference.decoding._tree import TokenTree, TreeStep, matching, verified
from llmlab.reference.decoding.beam import beam_search
from llmlab.reference.decoding.blockwise import blocks_over
from llmlab.reference.decoding.constrained import Constraint, Follow
from llmlab.reference.decoding.contrastive import contrastive_search
from llmlab.reference.decoding.eagle import EagleHead, eagle_over
from llmlab.reference.decoding.greedy import largest
from llmlab.reference.decoding.lookahead import lookahead
from llmlab.reference.decoding.medusa import MedusaHeads, medusa_decoding
from llmlab.reference.decoding.penalties import penalties
from llmlab.reference.decoding.sampling import sampling
from llmlab.reference.decoding.speculative import DraftModel, rejection
from llmlab.reference.decoding.tree_speculative import TreeOfDrafts, tree_rejection


class Text(Protocol):
    """What a strategy gives: tokens, and why they end."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens."""

    @property
    def reason(self) -> str:
        """Why no more came."""


Strategy = Callable[[TokenTree, Sequence[int], int, Sequence[int]], Text]
"""(tree, prompt, max_tokens, stop_ids) -> the text."""


@dataclass(frozen=True)
class Told:
    """A text of the real model.

    Attributes:
        ids: its tokens.
        reason: why it ends.
        calls: passes through the model's weights.
        seconds: from the prompt to the last token.
    """

    ids: tuple[int, ...]
    reason: str
    calls: int
    seconds: float

    @property
    def tokens_per_call(self) -> float:
        """Tokens each pass gave on average."""
        return len(self.ids) / max(self.calls, 1)


def tell(
    model: LlamaTorch, prompt: Sequence[int], strategy: Strategy, *, max_tokens: int, stop_ids: Sequence[int] = ()
) -> Told:
    """Decode one text and time it.

    Raises:
        ValueError: an empty prompt, or what the strategy refuses.
    """
    tree = TorchTree(model)
    begun = time.perf_counter()
    text = strategy(tree, prompt, max_tokens, stop_ids)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return Told(tuple(text.ids), text.reason, tree.calls, time.perf_counter() - begun)


@dataclass(frozen=True)
class _Best:
    """The best of several texts, as one."""

    ids: tuple[int, ...]
    reason: str
    score: float


def greedily() -> Strategy:
    """The likeliest token each time."""
    return _token_by_token(lambda prompt: _penalized(prompt, {}, largest))


def sampling_with(
    rng: np.random.Generator, options: Mapping[str, float] | None = None, penalty: Mapping[str, float] | None = None
) -> Strategy:
    """Draws from the truncated distribution (`decoding.sampling`), after penalties (`decoding.penalties`)."""

    def draw(logits_V: np.ndarray) -> int:
        return int(sampling(logits_V[None], rng.random(1), **(options or {}))[1][0])  # type: ignore[arg-type]

    return _token_by_token(lambda prompt: _penalized(prompt, penalty or {}, draw))


def penalizing(**penalty: float) -> Strategy:
    """The likeliest token each time, after penalties."""
    return _token_by_token(lambda prompt: _penalized(prompt, penalty, largest))


def under(constraint: Constraint) -> Strategy:
    """The likeliest token that a regular expression or JSON schema allows; its end ends the text."""

    def decode(tree: TokenTree, prompt: Sequence[int], max_tokens: int, stop_ids: Sequence[int]) -> Text:
        stop = Stop(max_tokens, frozenset({*stop_ids, constraint.vocabulary.end}))
        return generate(TreeStep(tree), prompt, Follow(constraint), stop)

    return decode


def beams(width: int, *, length_penalty: float = 1.0, groups: int = 1, diversity: float = 0.0) -> Strategy:
    """The best text of a beam search."""

    def decode(tree: TokenTree, prompt: Sequence[int], max_tokens: int, stop_ids: Sequence[int]) -> Text:
        found = beam_search(
            tree,
            prompt,
            beams=width,
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            length_penalty=length_penalty,
            groups=groups,
            diversity=diversity,
        )
        best = max(found, key=lambda one: one.score)
        return _Best(best.ids, "id" if best.ids[-1] in stop_ids else "length", best.score)

    return decode


def contrasting(candidates: int, alpha: float = 0.6) -> Strategy:
    """Contrastive search."""
    return lambda tree, prompt, max_tokens, stop_ids: contrastive_search(
        tree, prompt, candidates=candidates, alpha=alpha, max_tokens=max_tokens, stop_ids=stop_ids
    )


def speculating(draft: LlamaTorch, guesses: int, rng: np.random.Generator | None = None) -> Strategy:
    """A draft model's guesses in a row: greedily without `rng`, else sampled exactly."""
    verify = matching if rng is None else rejection(rng)
    return lambda tree, prompt, max_tokens, stop_ids: verified(
        tree, prompt, DraftModel(TorchTree(draft), guesses, rng), verify, Stop(max_tokens, frozenset(stop_ids))
    )


def speculating_trees(draft: LlamaTorch, widths: Sequence[int], rng: np.random.Generator | None = None) -> Strategy:
    """A draft model's tree of guesses: greedily without `rng`, else sampled exactly."""
    verify = matching if rng is None else tree_rejection(rng)
    return lambda tree, prompt, max_tokens, stop_ids: verified(
        tree, prompt, TreeOfDrafts(TorchTree(draft), widths, rng), verify, Stop(max_tokens, frozenset(stop_ids))
    )


def medusa_heads(heads: MedusaHeads, widths: Sequence[int], verify: Callable[..., Any] = matching) -> Strategy:
    """Medusa; greedily, or by `typical(...)` or `tree_rejection(...)`."""
    return lambda tree, prompt, max_tokens, stop_ids: medusa_decoding(
        tree, heads, prompt, widths=widths, max_tokens=max_tokens, stop_ids=stop_ids, verify=verify
    )


def eagle_head(head: EagleHead, widths: Sequence[int]) -> Strategy:
    """EAGLE, greedily."""
    return lambda tree, prompt, max_tokens, stop_ids: eagle_over(
        tree, head, prompt, widths=widths, max_tokens=max_tokens, stop_ids=stop_ids
    )


def looking_ahead(window: int, ngram: int, guesses: int) -> Strategy:
    """Lookahead decoding."""
    return lambda tree, prompt, max_tokens, stop_ids: lookahead(
        tree, prompt, window=window, ngram=ngram, guesses=guesses, max_tokens=max_tokens, stop_ids=stop_ids
    )


def in_blocks(inner_KFD: np.ndarray, outer_KDF: np.ndarray, head_VD: np.ndarray) -> Strategy:
    """Blockwise parallel decoding, exact."""
    return lambda tree, prompt, max_tokens, stop_ids: blocks_over(
        tree, head_VD, prompt, inner_KFD, outer_KDF, max_tokens, stop_ids, top=1, least=1
    )


def _token_by_token(chooser: Callable[[Sequence[int]], Callable[[np.ndarray], int]]) -> Strategy:
    def decode(tree: TokenTree, prompt: Sequence[int], max_tokens: int, stop_ids: Sequence[int]) -> Text:
        return generate(TreeStep(tree), prompt, chooser(prompt), Stop(max_tokens, frozenset(stop_ids)))

    return decode


def _penalized(
    prompt: Sequence[int], penalty: Mapping[str, float], choose: Callable[[np.ndarray], int]
) -> Callable[[np.ndarray], int]:
    """Choose after penalties on what prompt and output hold so far."""
    output: list[int] = []
    prompt_1P = np.array([prompt])

    def chosen(logits_V: np.ndarray) -> int:
        if penalty:
            output_1S = np.array([output], dtype=np.int64)
            logits_V = penalties(logits_V[None], prompt_1P, output_1S, **penalty)[0]  # type: ignore[arg-type]
        output.append(choose(logits_V))
        return output[-1]

    return chosen
