"""transformers' greedy text, which lookahead must not change; and n-gram guesses from the prompt, its own relative."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.decoding._greedy_text import greedy_text
from llmlab.reference.decoding._tree import Verified
from llmlab.reference.decoding.greedy import LlamaStep
from llmlab.reference.decoding.lookahead import LOOKAHEAD


@oracle(LOOKAHEAD, library="transformers.GenerationMixin.generate", needs=("torch", "transformers"))
def lookahead(
    step: LlamaStep, prompt: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int] = (), **sizes: int
) -> Verified:
    return greedy_text(step, prompt, max_tokens, stop_ids)


@oracle(LOOKAHEAD, library="transformers generate(prompt_lookup_num_tokens=)", needs=("torch", "transformers"))
def prompt_lookup(
    step: LlamaStep, prompt: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int] = (), **sizes: int
) -> Verified:
    import torch

    from llmlab.harness.oracles.models.llama import causal_lm

    if max_tokens == 0:
        return Verified((), "length")
    with torch.no_grad():
        ids = (
            causal_lm(step.config, step.weights, dtype=torch.float64)
            .generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
                max_new_tokens=max_tokens,
                prompt_lookup_num_tokens=3,
                do_sample=False,
                eos_token_id=list(stop_ids) or None,
                pad_token_id=0,
            )[0]
            .tolist()
        )
    new = tuple(ids[len(prompt) :])
    return Verified(new, "id" if new and new[-1] in stop_ids else "length")
