"""transformers' model and its decoder layer as the head, without its first norm; every branch and text read whole, no cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding._tree import Verified
from llmlab.reference.decoding.eagle import EAGLE
from llmlab.reference.decoding.greedy import LlamaStep


@oracle(EAGLE, library="transformers.LlamaDecoderLayer", needs=("torch", "transformers"))
def eagle(
    step: LlamaStep,
    prompt: Sequence[int],
    *,
    head_weights: Mapping[str, np.ndarray],
    widths: Sequence[int],
    max_tokens: int,
    stop_ids: Sequence[int] = (),
) -> Verified:
    import torch

    from llmlab.harness.oracles.models.llama import causal_lm

    target = causal_lm(step.config, step.weights, dtype=torch.float64)
    drafter = causal_lm(step.config, step.weights, dtype=torch.float64).model
    drafter.layers, drafter.norm = drafter.layers[-1:], torch.nn.Identity()
    drafter.layers[0].self_attn.layer_idx = 0
    drafter.layers[0].input_layernorm = torch.nn.Identity()
    weights = {name: torch.tensor(w) for name, w in head_weights.items()}
    fc = weights.pop("fc.weight")
    drafter.layers[0].load_state_dict(weights)

    @torch.no_grad()
    def branch(text: Sequence[int], features: torch.Tensor, ranks: Sequence[int]) -> list[int]:
        """The guesses along one branch, the child of rank r taken at each depth."""
        guesses: list[int] = []
        for rank in ranks:
            embedded = target.model.embed_tokens(torch.tensor([[*text[1:], *guesses]]))
            x = torch.cat([embedded, features[None]], dim=-1) @ fc.T
            new = drafter(inputs_embeds=x, use_cache=False).last_hidden_state[0, -1:]
            guesses.append(int(target.lm_head(new)[0].topk(rank + 1).indices[-1]))
            features = torch.cat([features, new])
        return guesses

    @torch.no_grad()
    def told(text: Sequence[int]) -> tuple[torch.Tensor, int]:
        """Features of a text and the token after it."""
        hidden = target.model(torch.tensor([list(text)])).last_hidden_state[0]
        return hidden, int(target.lm_head(hidden[-1]).argmax())

    text, emitted = list(prompt), []
    accepted: list[int] = []
    if max_tokens == 0:
        return Verified((), "length")
    while True:
        features, token = told([*text, *accepted])
        emitted.append(0)
        for new in [*accepted, token]:
            text.append(new)
            emitted[-1] += 1
            if new in stop_ids or len(text) - len(prompt) == max_tokens:
                reason = "id" if new in stop_ids else "length"
                return Verified(tuple(text[len(prompt) :]), reason, tuple(emitted))
        accepted = []
        for ranks in product(*map(range, widths)):
            guesses, held = branch(text, features, ranks), 0
            while held < len(guesses) and guesses[held] == told([*text, *guesses[:held]])[1]:
                held += 1
            accepted = max(accepted, guesses[:held], key=len)
