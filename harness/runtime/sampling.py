"""How the engine chooses tokens. A request's draws depend on the seed, its id and its token's place alone, not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmlab.kernels.decoding.sampling_torch import sampling
from llmlab.reference.decoding.sampling import require_options

Sampler = Callable[[Tensor, Sequence[tuple[int, int]]], list[int]]
"""logits_RV and each row's (request id, tokens it emitted before) -> one token per row."""


def greedy(logits_RV: Tensor, steps: Sequence[tuple[int, int]]) -> list[int]:
    """The likeliest token of each row; the lowest id where several are."""
    return logits_RV.argmax(-1).tolist()


def sampled(
    seed: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    epsilon: float = 0.0,
    eta: float = 0.0,
) -> Sampler:
    """Draw from the truncated distribution (`decoding.sampling`, whose options these are).

    Raises:
        ValueError: options that name no distribution; while choosing, logits that hold NaN.
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    options |= {"epsilon": epsilon, "eta": eta}
    require_options(**options)  # type: ignore[arg-type]

    def choose(logits_RV: Tensor, steps: Sequence[tuple[int, int]]) -> list[int]:
        uniform_R = torch.tensor([np.random.default_rng([seed, *step]).random() for step in steps], device=logits_RV.device)
        tokens = sampling(logits_RV, uniform_R, **options)[1].tolist()  # type: ignore[arg-type]
        for step, token in zip(steps, tokens):
            if token < 0:
                raise ValueError(f"request {step[0]}, token {step[1]}: its logits hold no distribution (NaN or infinity)")
        return tokens

    return choose
