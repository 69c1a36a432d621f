"""Penalties over torch: counts by scatter, n-grams by comparing all windows of the text with its end at once."""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.penalties import PENALTIES, require_penalties


@twin(PENALTIES, backend="torch")
def penalties(
    logits_BV: Tensor,
    prompt_BP: Tensor,
    output_BS: Tensor,
    *,
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
    no_repeat_ngram: int = 0,
) -> Tensor:
    require_penalties(repetition, frequency, presence, no_repeat_ngram)
    x_BV = logits_BV.double() if logits_BV.dtype == torch.float64 else logits_BV.float()
    count_BV = _counts(output_BS, x_BV)
    seen_BV = (count_BV > 0) | (_counts(prompt_BP, x_BV) > 0)
    if repetition != 1:
        x_BV = torch.where(seen_BV, torch.where(x_BV > 0, x_BV / repetition, x_BV * repetition), x_BV)
    x_BV = x_BV - frequency * count_BV - presence * (count_BV > 0).to(x_BV.dtype)
    if no_repeat_ngram:
        text_BS = _to_the_right(torch.cat([prompt_BP, output_BS], dim=1))
        if text_BS.shape[1] >= no_repeat_ngram:
            windows_BWn = text_BS.unfold(1, no_repeat_ngram, 1)
            stem_B1n = text_BS[:, None, text_BS.shape[1] - no_repeat_ngram + 1 :] if no_repeat_ngram > 1 else None
            closes_BW = (windows_BWn >= 0).all(-1)
            if stem_B1n is not None:
                closes_BW &= (windows_BWn[..., :-1] == stem_B1n).all(-1)
            banned_BV = torch.zeros_like(x_BV).scatter_add_(1, windows_BWn[..., -1].clamp(min=0), closes_BW.to(x_BV.dtype))
            x_BV = x_BV.masked_fill(banned_BV > 0, -torch.inf)
    return x_BV.to(logits_BV.dtype)


def _counts(ids_BS: Tensor, like_BV: Tensor) -> Tensor:
    return torch.zeros_like(like_BV).scatter_add_(1, ids_BS.clamp(min=0), (ids_BS >= 0).to(like_BV.dtype))


def _to_the_right(ids_BS: Tensor) -> Tensor:
    """Padding first, the tokens after it in their order."""
    return ids_BS.gather(1, (ids_BS >= 0).to(torch.uint8).argsort(dim=1, stable=True))
