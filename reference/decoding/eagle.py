"""EAGLE: a draft head that continues the target's features, not its tokens (Li et al. 2024, arXiv:2401.15077, section 3.1).

The head is one decoder layer without its first norm. It reads, at place i, the target's feature f_i (the last hidden state,
before the output matrix) beside the embedding of token i + 1, the token that was really drawn from f_i: knowing it makes the
next feature predictable. The target's own embedding and output matrix are used. Axes: T place, D width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmlab.reference.decoding._loop import Stop
from llmlab.reference.decoding._tree import ROOT, Draft, Scored, TokenTree, Verified, matching, same_text, verified
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep
from llmlab.reference.decoding.sampling import draw
from llmlab.reference.decoding.speculative import Distribution
from llmlab.reference.layers.rms_norm import rms_norm
from llmlab.reference.layers.softmax import softmax
from llmlab.reference.models._blocks import attention, feed_forward
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._weights import Weights
from llmlab.reference.op import Procedure


@dataclass(frozen=True)
class EagleHead:
    """The weights of a draft head.

    Attributes:
        config: the target's architecture; the layer has its shape.
        weights: of the layer by the names of a Llama layer, without "input_layernorm.weight", and "fc.weight" [D, 2D].
        embedding: embedding_VD, the target's.
        output_matrix: head_VD, the target's.
    """

    config: ModelConfig
    weights: Weights
    embedding: np.ndarray
    output_matrix: np.ndarray

    def features(self, tokens_T: Sequence[int], features_TD: np.ndarray) -> np.ndarray:
        """Return next_TD: the guess of feature i + 1 from features up to i and tokens up to i + 1.

        x = fc [embedding(token_{i+1}) ; f_i];   x <- x + attention(x);   x <- x + feed_forward(norm x)
        """
        x_TD = np.concatenate([self.embedding[list(tokens_T)], features_TD], axis=-1) @ self.weights["fc.weight"].T
        mixed_1TD, _ = attention(self.config, self.weights, x_TD[None], None, layer=0)
        x_1TD = x_TD[None] + mixed_1TD
        h_1TD = rms_norm(x_1TD, self.weights["post_attention_layernorm.weight"], eps=self.config.rms_norm_eps)
        return (x_1TD + feed_forward(self.config, self.weights, h_1TD, layer=0))[0]


@dataclass
class EagleDrafter:
    """A tree of guesses: at depth d each node gets `widths[d]` children by the head's prediction after it.

    Attributes:
        head: the draft head.
        widths: children per node at each depth; a static tree (section 3.1).
        rng: of the draws; None takes the likeliest, each once.
        distribution: logits_NV -> q_NV.
    """

    head: EagleHead
    widths: Sequence[int]
    rng: np.random.Generator | None = None
    distribution: Distribution = softmax
    _features: list[np.ndarray] = field(default_factory=list, init=False)

    def draft(self, text: Sequence[int]) -> Draft:
        """Grow the tree from the target's features of the text; guessed features continue them along each branch."""
        known_TD = np.array(self._features)
        tokens, parents, leaves = [text[-1]], [ROOT], [0]
        features: dict[int, np.ndarray] = {}  # the guess of a node's own feature
        rows = [np.zeros(len(self.head.output_matrix))]
        for width in self.widths:
            grown = []
            for leaf in leaves:
                branch = Draft(tuple(tokens), tuple(parents)).path_to(leaf)
                read = [*text[1:-1], *(tokens[node] for node in branch)]
                seen_TD = np.concatenate([known_TD, *(features[node][None] for node in branch[:-1])])
                features[leaf] = self.head.features(read, seen_TD)[-1]
                q_V = self.distribution((features[leaf] @ self.head.output_matrix.T)[None])[0]
                for token, drawn_V in self._guesses(q_V, width):
                    tokens.append(token)
                    parents.append(leaf)
                    rows.append(drawn_V)
                    grown.append(len(tokens) - 1)
            leaves = grown
        return Draft(tuple(tokens), tuple(parents), np.array(rows))

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """Keep the target's features of what became text; guessed ones are thrown away.

        Raises:
            ValueError: the model shows no hidden states.
        """
        if scored.hidden is None:
            raise ValueError("the model shows no hidden states: EAGLE's head continues them")
        self._features += list(scored.hidden[list(path)] if self._features else scored.hidden)

    def _guesses(self, q_V: np.ndarray, width: int) -> list[tuple[int, np.ndarray]]:
        if self.rng is None:
            likeliest = np.argsort(-q_V, kind="stable")[:width]
            return [(int(token), np.eye(len(q_V))[token]) for token in likeliest]
        return [(int(draw(q_V[None], self.rng.random(1))[0]), q_V) for _ in range(width)]


def eagle(
    step: LlamaStep,
    prompt: Sequence[int],
    *,
    head_weights: Weights,
    widths: Sequence[int],
    max_tokens: int,
    stop_ids: Sequence[int] = (),
) -> Verified:
    """Decode greedily with an EAGLE head's tree; return the text, and how many tokens each call of the target gave.

    Raises:
        ValueError: an empty prompt, negative max_tokens, or a head of another width.
    """
    return eagle_over(step, eagle_head(step, head_weights), prompt, widths=widths, max_tokens=max_tokens, stop_ids=stop_ids)


def eagle_head(step: LlamaStep, head_weights: Weights) -> EagleHead:
    """The head beside its target.

    Raises:
        ValueError: "fc.weight" does not map two of the target's widths to one.
    """
    D = step.config.hidden_size
    if head_weights["fc.weight"].shape != (D, 2 * D):
        raise ValueError(f"fc.weight {head_weights['fc.weight'].shape}: the target's width {D} needs {(D, 2 * D)}")
    return EagleHead(step.config, head_weights, step.weights["model.embed_tokens.weight"], step.head_VD)


def eagle_over(
    model: LlamaStep | TokenTree,
    head: EagleHead,
    prompt: Sequence[int],
    *,
    widths: Sequence[int],
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    rng: np.random.Generator | None = None,
    verify: Callable[..., tuple[Sequence[int], int]] = matching,
) -> Verified:
    """The same over any model that shows hidden states; sampled with `rng` and `tree_rejection(...)` as `verify`."""
    drafter = EagleDrafter(head, widths, rng)
    return verified(model, prompt, drafter, verify, Stop(max_tokens, frozenset(stop_ids)))


def random_head(step: LlamaStep, rng: np.random.Generator, noise: float = 0.02) -> dict[str, np.ndarray]:
    """An untrained head: the target's last layer, fed the feature alone, and noise."""
    prefix = f"model.layers.{step.config.num_hidden_layers - 1}."
    layer = {name.removeprefix(prefix): w for name, w in step.weights.items() if name.startswith(prefix)}
    layer.pop("input_layernorm.weight")
    D = step.config.hidden_size
    layer["fc.weight"] = np.concatenate([np.zeros((D, D)), np.eye(D)], axis=1)
    return {name: w + noise * rng.standard_normal(w.shape) for name, w in layer.items()}


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    example = dict(GREEDY.examples(rng))
    example["max_tokens"] = min(example["max_tokens"], 12)
    widths = [(1, 1), (2, 2), (3,), (), (2, 1, 1)][int(rng.integers(5))]
    return example | {"head_weights": random_head(example["step"], rng), "widths": widths}


EAGLE = Procedure(reference=eagle, examples=_examples, paper="arXiv:2401.15077", same=same_text)
