"""transformers' own generate, which keeps its own cache and stops by its own rules."""

from __future__ import annotations

from collections.abc import Sequence

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding._loop import Generated
from llmlab.reference.decoding.greedy import GREEDY, LlamaStep


@oracle(GREEDY, library="transformers.GenerationMixin.generate", needs=("torch", "transformers"))
def greedy(step: LlamaStep, prompt: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int] = ()) -> Generated:
    import torch

    from llmlab.harness.oracles.models.llama import causal_lm

    if max_tokens == 0:
        return Generated((), "length")  # the library refuses to generate nothing
    model = causal_lm(step.config, step.weights, dtype=torch.float64)
    with torch.no_grad():
        ids = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=0,
        )[0].tolist()
    new = tuple(ids[len(prompt) :])
    return Generated(new, "id" if new and new[-1] in stop_ids else "length")
