"""transformers' model, the whole text read again for every block; heads and acceptance by torch, block after block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding._tree import Verified
from llmlab.reference.decoding.blockwise import BLOCKWISE
from llmlab.reference.decoding.greedy import LlamaStep


@oracle(BLOCKWISE, library="transformers.LlamaForCausalLM", needs=("torch", "transformers"))
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
    import torch

    from llmlab.harness.oracles.models.llama import causal_lm

    model = causal_lm(step.config, step.weights, dtype=torch.float64)
    w1, w2 = torch.tensor(inner_KFD), torch.tensor(outer_KDF)

    @torch.no_grad()
    def read(ids: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """Logits after every token, and the block proposed after the last one."""
        hidden = model.model(torch.tensor([list(ids)])).last_hidden_state[0]
        h = hidden[-1]
        states = torch.stack([h, *(h + b @ torch.relu(a @ h) for a, b in zip(w1, w2))])
        return model.lm_head(hidden), model.lm_head(states).argmax(-1).tolist()

    text, calls = list(prompt), [0]

    def ended(token: int) -> str:
        """Append a token; why the text ends with it."""
        text.append(token)
        calls[-1] += 1
        return "id" if token in stop_ids else "length" if len(text) - len(prompt) == max_tokens else ""

    def told(reason: str) -> Verified:
        return Verified(tuple(text[len(prompt) :]), reason, tuple(calls))

    if max_tokens == 0:
        return Verified((), "length")
    while True:
        _, block = read(text)
        if reason := ended(block[0]):
            return told(reason)
        logits, _ = read([*text, *block[1:]])  # the same call as the next block's first token, which the text decides
        calls.append(0)
        for place, guess in enumerate(block[1:], start=1):
            if place >= least and guess not in logits[len(text) - 1].topk(top).indices.tolist():
                break
            if reason := ended(guess):
                return told(reason)
