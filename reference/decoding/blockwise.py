"""Blockwise parallel decoding: k heads predict a block, the first head verifies it (Stern et al. 2018, arXiv:1811.03115,
sections 3 to 5).

The heads sit on the model's last hidden state (section 4): head 1 is the model itself, and what the next block proposes is read
from the same call that verifies this one, so that a block costs one call (figure 2). Axes: K head beyond the first, D width,
F inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmlab.reference.decoding._loop import Stop
from llmlab.reference.decoding._tree import Draft, Scored, TokenTree, Verified, chain, same_text, verified
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep
from llmlab.reference.op import Procedure


@dataclass
class BlockHeads:
    """Proposals of heads 2 to k from the last verified hidden state.

    Attributes:
        inner: w1_KFD of each head's residual layer.
        outer: w2_KDF.
        output_matrix: head_VD, the model's own.
    """

    inner: np.ndarray
    outer: np.ndarray
    output_matrix: np.ndarray
    _hidden: np.ndarray = field(default_factory=lambda: np.zeros(0), init=False)

    def draft(self, text: Sequence[int]) -> Draft:
        """Predict: each head's likeliest token, in a row below the model's own."""
        return chain([text[-1], *np.argmax(self.logits(self._hidden), axis=-1).tolist()])

    def learn(self, draft: Draft, scored: Scored, path: Sequence[int]) -> None:
        """Keep the hidden state of the last token accepted.

        Raises:
            ValueError: the model shows no hidden states.
        """
        if scored.hidden is None:
            raise ValueError("the model shows no hidden states: the heads have nothing to read")
        self._hidden = scored.hidden[path[-1]] if len(scored.logits) == len(scored.hidden) else scored.hidden[-1]

    def logits(self, hidden_D: np.ndarray) -> np.ndarray:
        """Return logits_KV:  head (h + W2 relu(W1 h)), the output matrix shared (section 4)."""
        inner_KF = np.maximum(np.einsum("kfd,d->kf", self.inner, hidden_D), 0)
        return (hidden_D + np.einsum("kdf,kf->kd", self.outer, inner_KF)) @ self.output_matrix.T


def accept_block(draft: Draft, logits_NV: np.ndarray, *, top: int = 1, least: int = 1) -> tuple[list[int], int]:
    """Verify: the longest beginning of the block whose tokens are among the model's `top` likeliest (sections 3 and 5.1).

    With top = 1 that is greedy decoding's text. The first `least` tokens of a block are taken unseen (section 5.3).

    >>> accept_block(chain([5, 1, 2]), np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 9.0]]))
    ([0, 1], 0)
    """
    path = [0]
    for n in range(1, len(draft.tokens)):
        likeliest = np.argsort(-logits_NV[n - 1], kind="stable")[:top]
        if n >= least and draft.tokens[n] not in likeliest:
            break
        path.append(n)
    return path, int(np.argmax(logits_NV[path[-1]]))


def blockwise(
    step: LlamaStep,
    prompt: Sequence[int],
    *,
    inner_KFD: np.ndarray,
    outer_KDF: np.ndarray,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    top: int = 1,
    least: int = 1,
) -> Verified:
    """Decode in blocks of up to K + 1 tokens; return the text, and how many tokens each call gave.

    Raises:
        ValueError: an empty prompt, negative max_tokens, `top` or `least` below 1, or heads of another width.
    """
    return blocks_over(step, step.head_VD, prompt, inner_KFD, outer_KDF, max_tokens, stop_ids, top, least)


def blocks_over(
    model: LlamaStep | TokenTree,
    head_VD: np.ndarray,
    prompt: Sequence[int],
    inner_KFD: np.ndarray,
    outer_KDF: np.ndarray,
    max_tokens: int,
    stop_ids: Sequence[int],
    top: int,
    least: int,
) -> Verified:
    """The same over any model that shows hidden states."""
    if top < 1 or least < 1:
        raise ValueError(f"top={top}, least={least}: must be at least 1")
    K, F, D = inner_KFD.shape
    if outer_KDF.shape != (K, D, F) or head_VD.shape[1] != D:
        raise ValueError(f"heads {inner_KFD.shape} and {outer_KDF.shape} do not fit an output matrix {head_VD.shape}")
    return verified(
        model,
        prompt,
        BlockHeads(inner_KFD, outer_KDF, head_VD),
        lambda draft, logits_NV: accept_block(draft, logits_NV, top=top, least=least),
        Stop(max_tokens, frozenset(stop_ids)),
    )


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    example = dict(GREEDY.examples(rng))
    K, D, F = int(rng.integers(1, 5)), example["step"].config.hidden_size, int(rng.integers(1, 9))
    heads = {"inner_KFD": 0.2 * rng.standard_normal((K, F, D)), "outer_KDF": 0.2 * rng.standard_normal((K, D, F))}
    return example | heads | {"top": int(rng.integers(1, 4)), "least": int(rng.integers(1, 3))}


BLOCKWISE = Procedure(reference=blockwise, examples=_examples, paper="arXiv:1811.03115", same=same_text)
